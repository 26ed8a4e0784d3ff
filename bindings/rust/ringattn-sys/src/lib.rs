//! The C API of libringattn as it is. Comments are those of its header; the crate `ringattn` is the
//! safe one.
#![no_std]
#![allow(non_camel_case_types, rustdoc::all)]

#[cfg(not(feature = "bindgen"))]
#[rustfmt::skip]
mod bindings;
#[cfg(feature = "bindgen")]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
}

pub use bindings::*;
