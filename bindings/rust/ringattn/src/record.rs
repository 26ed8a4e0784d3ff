//! What the generated records convert their fields with.

use std::ffi::{c_char, c_void, CStr, CString};
use std::mem::size_of;

use crate::library;
use crate::{Error, Result};

/// What `init`, the function of the library that initialises T, fills it with. Zeros if the library
/// is one that nothing else may be asked of either.
pub(crate) fn defaults<T: Default>(init: unsafe extern "C" fn(*mut T, usize)) -> T {
    let mut record = T::default();
    if library::check().is_ok() {
        // SAFETY: it writes at most the given bytes, to a record that is ours.
        unsafe { init(&mut record, size_of::<T>()) };
    }
    record
}

/// The text of a `char[]`.
pub(crate) fn text(characters: &[c_char]) -> String {
    // SAFETY: c_char and u8 differ in sign only.
    let bytes = unsafe { &*(characters as *const [c_char] as *const [u8]) };
    let end = CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes);
    String::from_utf8_lossy(end).into_owned()
}

/// `field` as C has it: refused if it has a NUL byte.
pub(crate) fn c_string(field: &str, text: &Option<impl AsRef<str>>) -> Result<Option<CString>> {
    let Some(text) = text else { return Ok(None) };
    CString::new(text.as_ref()).map(Some).map_err(|error| {
        let position = error.nul_position();
        Error::invalid_argument(format!(
            "{field} has a NUL byte at {position}; must have none"
        ))
    })
}

pub(crate) fn characters(text: &Option<CString>) -> *const c_char {
    text.as_ref().map_or(std::ptr::null(), |text| text.as_ptr())
}

pub(crate) fn entries<T>(list: &Option<impl AsRef<[T]>>) -> *const T {
    // One without entries is none.
    let list = list.as_ref().map(AsRef::as_ref);
    let list = list.filter(|list| !list.is_empty());
    list.map_or(std::ptr::null(), <[T]>::as_ptr)
}

pub(crate) fn count_entries<T>(list: &Option<impl AsRef<[T]>>) -> Option<i64> {
    list.as_ref().map(|list| list.as_ref().len() as i64)
}

/// Requires that a list that is given has as many entries as C will read.
pub(crate) fn check_entries<T>(
    field: &str,
    list: &Option<impl AsRef<[T]>>,
    formula: &str,
    count: i64,
) -> Result<()> {
    match count_entries(list) {
        Some(entries) if entries != count => Err(Error::invalid_argument(format!(
            "{field} has {entries} entries; must have {formula} = {count}"
        ))),
        _ => Ok(()),
    }
}

/// An object of C that an unsafe setter was given.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Pointer(pub(crate) *mut c_void);

// SAFETY: nothing here follows it, and who set it has promised that it is valid wherever it goes.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}
