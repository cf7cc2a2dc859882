//! How edgecore is linked where size comes first, which is the profile `edge` of `make build`.
//!
//! The kernel maps a program's pages sixteen at a time, so functions that are spread over the file keep nearly all of it
//! in memory. `layout/hot.txt` names those that an edge runs; the linker puts them beside each other. A name that is
//! not there any more is passed over, and one that is missing costs some pages: `make layout` makes the file anew.
//!
//! The names are those of `-C symbol-mangling-version=v0`, with which `make build` builds: the others are the same for all
//! instances of a generic function. Built without that flag, edgecore is the same but for the order of its functions.
//!
//! Nothing is done for another linker than the toolchain's own, or for another system than Linux with glibc.

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf, process::Command};

/// The first glibc that reads packed relative relocations.
const PACKED_SINCE: (u32, u32) = (2, 36);
/// The first toolchain that brings its own linker, lld, for Linux on x86_64.
const LLD_SINCE: (u32, u32) = (1, 90);

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=layout/hot.txt");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    let own_linker = env::var_os("RUSTC_LINKER").is_none()
        && !env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default().contains("link");
    let for_size = is("OPT_LEVEL", "z");
    if !for_size || !own_linker || !is("CARGO_CFG_TARGET_OS", "linux") || !is("CARGO_CFG_TARGET_ENV", "gnu") {
        return Ok(());
    }
    let script = PathBuf::from(env::var("OUT_DIR")?).join("hot.ld");
    fs::write(&script, linker_script(&fs::read_to_string("layout/hot.txt")?))?;
    println!("cargo::rustc-link-arg-bin=edgecore=-Wl,-T,{}", script.display());
    // lld keeps functions once that have become the same code.
    if links_with_lld() {
        println!("cargo::rustc-link-arg-bin=edgecore=-Wl,--icf=all");
    }
    // A program with packed relocations does not start with an older glibc: only where it is built for its own.
    if env::var("HOST") == env::var("TARGET") && glibc().is_some_and(|version| version >= PACKED_SINCE) {
        println!("cargo::rustc-link-arg-bin=edgecore=-Wl,-z,pack-relative-relocs");
    }
    Ok(())
}

/// Adds a section for the functions of these names, each of which the compiler put in a section of its own.
fn linker_script(names: &str) -> String {
    let mut script = "SECTIONS {\n.text.hot : {\n".to_owned();
    for name in names.lines().filter(|line| !line.starts_with('#')) {
        // A String takes everything.
        let _ = writeln!(script, "*(.text.{name} .text.unlikely.{name})");
    }
    script + "}\n}\nINSERT BEFORE .text;\n"
}

/// The version of this machine's glibc.
fn glibc() -> Option<(u32, u32)> {
    version(&said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?, "glibc ")
}

/// Whether the toolchain links with the lld that it brings: since [`LLD_SINCE`] on x86_64, where it was not left out.
fn links_with_lld() -> bool {
    let is_so = || {
        let (rustc, target) = (env::var_os("RUSTC")?, env::var("TARGET").ok()?);
        let version = version(&said(Command::new(&rustc).arg("--version"))?, "rustc ")?;
        let sysroot = said(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let lld = PathBuf::from(sysroot.trim()).join("lib/rustlib").join(&target).join("bin/gcc-ld/ld.lld");
        Some(target == "x86_64-unknown-linux-gnu" && version >= LLD_SINCE && lld.exists())
    };
    is_so().unwrap_or(false)
}

fn said(command: &mut Command) -> Option<String> {
    String::from_utf8(command.output().ok()?.stdout).ok()
}

/// Major and minor of what is said, as in `rustc 1.95.0 (...)` and `glibc 2.36`.
fn version(said: &str, of: &str) -> Option<(u32, u32)> {
    let mut numbers = said.trim().strip_prefix(of)?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
