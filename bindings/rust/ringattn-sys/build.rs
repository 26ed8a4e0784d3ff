//! Tells cargo where libringattn is. With the feature `bindgen`, also generates its declarations.

use std::env;
use std::path::Path;
use std::process::exit;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "bindgen")]
    generate();

    println!("cargo:rerun-if-env-changed=RINGATTN_LIB_DIR");
    println!("cargo:rerun-if-env-changed=DOCS_RS");
    if env::var_os("DOCS_RS").is_some() {
        return; // documentation is built without the library
    }
    match find() {
        Ok(folder) => println!("cargo:lib_dir={folder}"),
        Err(looked) => {
            eprintln!("{looked}");
            exit(1);
        }
    }
}

/// The folder of the library, or what was found in each place instead.
fn find() -> Result<String, String> {
    let given = env::var("RINGATTN_LIB_DIR").unwrap_or_default();
    let (in_folder, in_pkg_config) = if given.is_empty() {
        match pkg_config::Config::new()
            .range_version(versions())
            .probe("ringattn")
        {
            Ok(library) => {
                let folder = library.link_paths.first();
                return Ok(folder.map_or(String::new(), |path| path.display().to_string()));
            }
            Err(error) => ("not set".to_string(), error.to_string()),
        }
    } else {
        let names = ["libringattn.so", "libringattn.dylib", "libringattn.a"];
        if names
            .iter()
            .any(|name| Path::new(&given).join(name).exists())
        {
            println!("cargo:rustc-link-search=native={given}");
            println!("cargo:rustc-link-lib=ringattn");
            return Ok(given);
        }
        (
            format!("{given}, which has no {}", names[0]),
            "not asked, since RINGATTN_LIB_DIR is set".to_string(),
        )
    };
    Err(format!(
        "libringattn was not found. Install it, or set RINGATTN_LIB_DIR to its folder or \
         PKG_CONFIG_PATH to that of ringattn.pc. These were looked at:\n\n\
         RINGATTN_LIB_DIR: {in_folder}\n\n\
         pkg-config: {in_pkg_config}"
    ))
}

/// Of the library that these declarations fit: from this crate's version to the next major one, or
/// before 1.0 to the next minor one.
fn versions() -> std::ops::Range<&'static str> {
    let next = match env!("CARGO_PKG_VERSION_MAJOR").parse::<u32>() {
        Ok(0) => format!(
            "0.{}",
            env!("CARGO_PKG_VERSION_MINOR").parse::<u32>().unwrap_or(0) + 1
        ),
        major => (major.unwrap_or(0) + 1).to_string(),
    };
    env!("CARGO_PKG_VERSION")..next.leak()
}

/// Comments without the mark of those that stand behind what they describe, and with fences around
/// what is indented, which is no Rust.
#[cfg(feature = "bindgen")]
#[derive(Debug)]
struct Comments;

#[cfg(feature = "bindgen")]
impl bindgen::callbacks::ParseCallbacks for Comments {
    fn process_comment(&self, comment: &str) -> Option<String> {
        let mut text = String::new();
        let mut fenced = false;
        for line in comment.trim_start_matches('<').trim().lines() {
            let indented = line.trim_start_matches(' ').len() + 4 <= line.len();
            if indented != fenced {
                text += if indented { "```text\n" } else { "```\n" };
                fenced = indented;
            }
            text += line;
            text += "\n";
        }
        text += if fenced { "```" } else { "" };
        Some(text.trim_end().to_string())
    }
}

#[cfg(feature = "bindgen")]
fn generate() {
    let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/ringattn.h");
    println!("cargo:rerun-if-changed={}", header.display());
    let oldest_rust = bindgen::RustTarget::stable(78, 0).expect("1.78 is known to bindgen");
    let bindings = bindgen::builder()
        .header(header.to_string_lossy())
        .allowlist_item("(ra|RA)_.*")
        .prepend_enum_name(false)
        .derive_default(true)
        .layout_tests(true)
        .use_core()
        .parse_callbacks(Box::new(Comments))
        .rust_target(oldest_rust)
        .formatter(bindgen::Formatter::Prettyplease)
        .generate()
        .expect("bindgen says why");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    bindings
        .write_to_file(Path::new(&out).join("bindings.rs"))
        .expect("OUT_DIR can be written to");
}
