//! The macro that declares a choice: its enum, its rows and its texts.
//!
//! A row is `SUPPORT Variant = "word": "What it means.";`, where SUPPORT is `now`, `bhyve` or `embedded`, as in
//! [`Support`](super::Support). A row `later Variant = "word", until "what to do": "What it means.";` has a line in the key
//! table and the manual, and no variant: nothing can hold a value that no engine acts on. When its `later` becomes `now`,
//! the variant is there, and every `match` that wires the choice fails to compile until it has an arm for it.
//!
//! After the name, `[embedded NAME]` and `[bhyve NAME]` make enums of what one engine has. That engine's wiring matches
//! on its own enum, so that the compiler asks for the wiring when an engine is added to a row.

/// Declares enums of choices; see the head of this file.
macro_rules! choices {
    // Every row taken apart: `all` has the variants, `rows` the lines of the key table, the last two what one engine has.
    (@made [$(#[$about:meta])* $name:ident $([embedded $on_embedded:ident])? $([bhyve $on_bhyve:ident])?]
        [$($variant:ident $word:literal $doc:literal)*] [$(($row:literal $support:expr, $row_doc:literal))*]
        $embedded:tt $bhyve:tt) => {
        choices! { @enum [$(#[$about])*] $name [$($variant $word $doc)*] }

        impl $name {
            /// Returns the word of a file.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }
            $(choices! { @subset on_embedded "the embedded engine" $on_embedded $embedded })?
            $(choices! { @subset on_bhyve "bhyve(8)" $on_bhyve $bhyve })?
        }

        impl Choices for $name {
            const ALL: &'static [Self] = &[$(Self::$variant),*];
            const ROWS: &'static [Choice] = &[$(Choice { value: $row, support: $support, doc: $row_doc }),*];
            fn word(self) -> &'static str {
                self.as_str()
            }
        }

        $(choices! { @enum [#[doc = concat!("What the embedded engine has of [`", stringify!($name), "`].")]] $on_embedded $embedded })?
        $(choices! { @enum [#[doc = concat!("What bhyve(8) has of [`", stringify!($name), "`].")]] $on_bhyve $bhyve })?
    };
    (@enum [$(#[$about:meta])*] $name:ident [$($variant:ident $word:literal $doc:literal)*]) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum $name {
            $(
                #[doc = $doc]
                #[serde(rename = $word)]
                $variant,
            )*
        }
    };
    (@subset $method:ident $engine:literal $subset:ident [$($variant:ident $word:literal $doc:literal)*]) => {
        #[doc = concat!("The same for ", $engine, "; `None` where that has it not.")]
        pub const fn $method(self) -> Option<$subset> {
            match self {
                $(Self::$variant => Some($subset::$variant),)*
                #[allow(unreachable_patterns, reason = "an engine may have every one")]
                _ => None,
            }
        }
    };
    // The rows, one after the other.
    (@row $head:tt [$($all:tt)*] [$($rows:tt)*] [$($embedded:tt)*] [$($bhyve:tt)*]
        now $variant:ident = $word:literal: $doc:literal; $($rest:tt)*) => {
        choices! { @row $head [$($all)* $variant $word $doc] [$($rows)* ($word Support::Now, $doc)]
            [$($embedded)* $variant $word $doc] [$($bhyve)* $variant $word $doc] $($rest)* }
    };
    (@row $head:tt [$($all:tt)*] [$($rows:tt)*] [$($embedded:tt)*] $bhyve:tt
        embedded $variant:ident = $word:literal: $doc:literal; $($rest:tt)*) => {
        choices! { @row $head [$($all)* $variant $word $doc] [$($rows)* ($word Support::Embedded, $doc)]
            [$($embedded)* $variant $word $doc] $bhyve $($rest)* }
    };
    (@row $head:tt [$($all:tt)*] [$($rows:tt)*] $embedded:tt [$($bhyve:tt)*]
        bhyve $variant:ident = $word:literal: $doc:literal; $($rest:tt)*) => {
        choices! { @row $head [$($all)* $variant $word $doc] [$($rows)* ($word Support::Bhyve, $doc)]
            $embedded [$($bhyve)* $variant $word $doc] $($rest)* }
    };
    (@row $head:tt $all:tt [$($rows:tt)*] $embedded:tt $bhyve:tt
        later $variant:ident = $word:literal, until $until:literal: $doc:literal; $($rest:tt)*) => {
        choices! { @row $head $all [$($rows)* ($word Support::Later($until), $doc)] $embedded $bhyve $($rest)* }
    };
    (@row $head:tt $all:tt $rows:tt $embedded:tt $bhyve:tt) => {
        choices! { @made $head $all $rows $embedded $bhyve }
    };
    // The declarations, one after the other.
    ($(
        $(#[$about:meta])*
        pub enum $name:ident $([$engine:ident $subset:ident])* { $($rows:tt)* }
    )*) => {
        $(choices! { @row [$(#[$about])* $name $([$engine $subset])*] [] [] [] [] $($rows)* })*
    };
}

pub(super) use choices;
