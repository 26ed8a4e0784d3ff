//! What cases.json says, as the crate takes it.

use std::fmt::Debug;
use std::str::FromStr;

use serde_json::Value;

pub trait Number: Sized {
    fn of(value: &Value) -> Option<Self>;
}

impl Number for i32 {
    fn of(value: &Value) -> Option<Self> {
        value.as_i64()?.try_into().ok()
    }
}

impl Number for i64 {
    fn of(value: &Value) -> Option<Self> {
        value.as_i64()
    }
}

impl Number for bool {
    fn of(value: &Value) -> Option<Self> {
        value.as_bool()
    }
}

impl Number for f32 {
    fn of(value: &Value) -> Option<Self> {
        match value.as_str() {
            Some(name) => name.parse().ok(), // inf, -inf, nan
            None => value.as_f64().map(|number| number as f32),
        }
    }
}

impl Number for f64 {
    fn of(value: &Value) -> Option<Self> {
        value.as_f64()
    }
}

pub fn number<T: Number>(value: &Value) -> T {
    T::of(value).unwrap_or_else(|| panic!("{value} does not fit a field of its kind"))
}

pub fn text(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| value.as_str().expect("text or null").to_string())
}

pub fn list<T: Number>(value: &Value) -> Option<Vec<T>> {
    let entries = value.as_array().or_else(|| {
        assert!(value.is_null(), "{value} is neither a list nor null");
        None
    })?;
    Some(entries.iter().map(number).collect())
}

pub fn choice<T: FromStr>(value: &Value) -> T
where
    T::Err: Debug,
{
    value.as_str().expect("a constant's name").parse().unwrap()
}
