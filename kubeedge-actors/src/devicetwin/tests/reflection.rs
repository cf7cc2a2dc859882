//! What a mapper's author learns from the socket itself.

use prost_types::FileDescriptorProto;
use tonic::transport::Channel;
use tonic_reflection::pb;

use super::*;

const DMI: &str = "v1beta1.DeviceManagerService";

async fn channel(site: &Site) -> Channel {
    until_there(&site.socket()).await;
    let url = format!("unix://{}", site.socket().display());
    Endpoint::from_shared(url).unwrap().connect().await.unwrap()
}

fn names(files: &[Vec<u8>]) -> Vec<FileDescriptorProto> {
    files.iter().map(|file| FileDescriptorProto::decode(file.as_slice()).unwrap()).collect()
}

/// Both versions of the protocol have the same messages under other names.
macro_rules! asked {
    ($site:expr, $version:ident) => {{
        use pb::$version::{
            ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
            server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
        };
        let mut client = ServerReflectionClient::new(channel($site).await);
        let requests = [
            MessageRequest::ListServices(String::new()),
            MessageRequest::FileContainingSymbol(DMI.into()),
            MessageRequest::FileByFilename("google/protobuf/any.proto".into()),
        ];
        let requests =
            requests.map(|request| ServerReflectionRequest { host: String::new(), message_request: Some(request) });
        let mut answers =
            client.server_reflection_info(futures_util::stream::iter(requests)).await.unwrap().into_inner();
        let mut said = (Vec::new(), Vec::new());
        while let Some(answer) = within(answers.message()).await.unwrap() {
            match answer.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => {
                    said.0.extend(list.service.into_iter().map(|service| service.name));
                }
                MessageResponse::FileDescriptorResponse(files) => said.1.extend(names(&files.file_descriptor_proto)),
                other => panic!("{other:?}"),
            }
        }
        said
    }};
}

#[actix_rt::test]
async fn the_socket_says_what_it_speaks_in_both_versions_of_reflection() {
    let site = Site::start(Rate::default());
    for (mut services, files) in [asked!(&site, v1), asked!(&site, v1alpha)] {
        services.sort();
        assert_eq!(services, ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection", DMI]);
        let [dmi, any] = files.try_into().expect("two files");
        let methods: Vec<&str> = dmi.service.iter().flat_map(|service| &service.method).map(|m| m.name()).collect();
        for method in ["MapperRegister", "ReportDeviceStatus", "ReportDeviceStates"] {
            assert!(methods.contains(&method), "{methods:?}");
        }
        assert_eq!(any.package(), "google.protobuf");
    }
    // The service itself is where it was.
    let mut client = site.client().await;
    within(client.report_device_status(status(vec![("t", Some("1"), None)]))).await.unwrap();
    drop(client);
    site.test.assert_quiet().await;
}
