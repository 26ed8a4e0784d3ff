//! Enums of C.

/// Makes an enum of the constants of one of C: `/// doc, Name, "name in C"; /// doc, Variant = value, "NAME"; ...`.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $what:literal;
     $($(#[$variant_doc:meta])* $variant:ident = $value:expr, $c_name:literal;)+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(i32)]
        pub enum $name {
            $($(#[$variant_doc])* $variant = $value as i32,)+
            /// A number that this crate does not know, from a newer library, which refuses this one.
            Unknown = i32::MIN,
        }

        impl $name {
            /// Of the number in C; any other is `Unknown`.
            pub fn from_raw(raw: i32) -> Self {
                $(if raw == $value as i32 {
                    return Self::$variant;
                })+
                Self::Unknown
            }

            #[doc = concat!("The constant's name in C without its prefix, as in `", $($c_name, "`, `",)+ "UNKNOWN`.")]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $c_name,)+
                    Self::Unknown => "UNKNOWN",
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::Error;

            /// From what `name` gives.
            fn from_str(name: &str) -> $crate::Result<Self> {
                $(if name == $c_name {
                    return Ok(Self::$variant);
                })+
                let names: &[&str] = &[$($c_name),+];
                let message = format!("{} is {name}; must be one of {}", $what, names.join(", "));
                Err($crate::Error::invalid_argument(message))
            }
        }
    };
}
pub(crate) use choice;
