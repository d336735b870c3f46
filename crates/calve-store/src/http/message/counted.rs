//! Lists in messages: what they take in memory is counted while they are read, as an item of a few bytes on the wire may be
//! one of a hundred in memory.

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Visitor};

/// Most bytes that the lists of one message may take in memory, besides the texts in them: five times what a hundred thousand
/// manifests need.
const LISTS_MAX_BYTES: usize = 128 << 20;

thread_local! {
    /// What the message that is being read on this thread may still take.
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// Reads one message, whose lists are [`counted`].
pub fn within_limit<T>(read: impl FnOnce() -> T) -> T {
    LEFT.set(LISTS_MAX_BYTES);
    read()
}

/// A list of a message; for `deserialize_with`.
pub fn counted<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    deserializer.deserialize_seq(Counted(PhantomData))
}

struct Counted<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Counted<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            let left = LEFT.get().checked_sub(size_of::<T>());
            LEFT.set(left.ok_or_else(|| A::Error::custom("its lists are too long"))?);
            list.push(item);
        }
        Ok(list)
    }
}
