//! Compiles the `.proto` files with protox (no protoc) into prost types and tonic services.

use std::{env, error::Error, path::PathBuf};

const FILES: &[&str] = &[
    "kubeedge/v1/objects.proto",
    "kubeedge/v1/devices.proto",
    "kubeedge/v1/envelope.proto",
    "kubeedge/v1/link.proto",
    "kubeedge/v1/enrolment.proto",
    "kubeedge/v1/actors.proto",
    "kubeedge/v1/edge_store.proto",
    "kubeedge/v1/kubelet.proto",
];

const DMI: &str = "dmi/v1beta1/api.proto";

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("proto");
    println!("cargo::rerun-if-changed={}", root.display());

    let mut files: Vec<&str> = FILES.to_vec();
    if env::var_os("CARGO_FEATURE_CRI").is_some() {
        files.push("runtime/v1/api.proto");
    }
    if env::var_os("CARGO_FEATURE_HEALTH").is_some() {
        files.push("grpc/health/v1/health.proto");
    }
    if env::var_os("CARGO_FEATURE_DMI").is_some() {
        files.push(DMI);
        let mut described = protox::Compiler::new([&root])?;
        described.include_imports(true).include_source_info(false).open_file(DMI)?;
        let file = PathBuf::from(env::var("OUT_DIR")?).join("dmi.descriptors");
        std::fs::write(file, described.encode_file_descriptor_set())?;
    }
    let descriptors = protox::compile(files, [&root])?;
    let grpc = env::var_os("CARGO_FEATURE_GRPC").is_some();
    tonic_prost_build::configure()
        .build_client(grpc)
        .build_server(grpc)
        .codec_path("crate::codec::SmallCodec")
        .bytes(".")
        // What an owner and its session tell each other is at most 120 bytes, too: then it costs the allocator no lock
        // when one thread makes it and another drops it.
        .boxed(".kubeedge.v1.CallReply.result.object")
        .boxed(".kubeedge.v1.CallReply.result.api_response")
        // A frame is moved a dozen times between a socket and a session: not half a kilobyte each time.
        .boxed(".kubeedge.v1.Frame.frame.hello")
        .boxed(".kubeedge.v1.Frame.frame.welcome")
        .boxed(".kubeedge.v1.Frame.frame.inventory")
        .boxed(".kubeedge.v1.Frame.frame.inventory_complete")
        .boxed(".kubeedge.v1.Frame.frame.bookmark")
        .compile_fds(descriptors)?;
    if env::var_os("CARGO_FEATURE_DEVICE_PLUGIN").is_some() {
        // By itself and to a folder of its own: its package's name is that of other protocols, too.
        let folder = PathBuf::from(env::var("OUT_DIR")?).join("deviceplugin");
        std::fs::create_dir_all(&folder)?;
        let descriptors = protox::compile(["deviceplugin/v1beta1/api.proto"], [&root])?;
        tonic_prost_build::configure().out_dir(folder).compile_fds(descriptors)?;
    }
    Ok(())
}
