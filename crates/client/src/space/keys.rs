//! Keys of spaces: what displays, and tuples of it.

use std::borrow::Cow;
use std::fmt::{self, Display, Write};
use std::sync::Arc;

/// What stands behind a space's name in its keys: `rate:7`, `price:7:eur`.
///
/// Numbers, texts, and tuples of up to four such parts are keys. For a type of the application that displays, one line does:
/// `impl SpaceKey for OrderId { const PARTS: usize = 1; fn parts(&self, each: &mut dyn FnMut(&dyn Display)) { each(self) } }`, or wrap it in
/// [`Shown`].
pub trait SpaceKey {
    /// How many parts it has.
    const PARTS: usize;

    /// Shows each part, in order.
    fn parts(&self, each: &mut dyn FnMut(&dyn Display));
}

/// Anything that displays, as a key of one part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Shown<T>(pub T);

impl<T: Display> SpaceKey for Shown<T> {
    const PARTS: usize = 1;

    fn parts(&self, each: &mut dyn FnMut(&dyn Display)) {
        each(&self.0);
    }
}

macro_rules! one_part {
    ($($name:ty),+) => { $(
        impl SpaceKey for $name {
            const PARTS: usize = 1;

            fn parts(&self, each: &mut dyn FnMut(&dyn Display)) {
                each(&self);
            }
        }
    )+ };
}

one_part!(
    u8,
    u16,
    u32,
    u64,
    u128,
    usize,
    i8,
    i16,
    i32,
    i64,
    i128,
    isize,
    bool,
    char,
    str,
    String,
    Cow<'_, str>,
    Arc<str>
);

impl<T: SpaceKey + ?Sized> SpaceKey for &T {
    const PARTS: usize = T::PARTS;

    fn parts(&self, each: &mut dyn FnMut(&dyn Display)) {
        (**self).parts(each);
    }
}

macro_rules! tuples {
    ($(($($name:ident $place:tt),+)),+) => { $(
        impl<$($name: SpaceKey),+> SpaceKey for ($($name,)+) {
            const PARTS: usize = 0 $(+ $name::PARTS)+;

            fn parts(&self, each: &mut dyn FnMut(&dyn Display)) {
                $(self.$place.parts(each);)+
            }
        }
    )+ };
}

tuples!((A 0, B 1), (A 0, B 1, C 2), (A 0, B 1, C 2, D 3));

/// Appends a key of a space. Of several parts, `%` and `:` are written as `%25` and `%3A`, so that two keys are never the same.
///
/// # Errors
/// Where a part does not display.
pub(super) fn render<K: SpaceKey + ?Sized>(key: &K, to: &mut impl Write) -> fmt::Result {
    let (mut is_first, mut part_text, mut shown) = (true, String::new(), Ok(()));
    key.parts(&mut |part| {
        let mut show = || {
            if !std::mem::take(&mut is_first) {
                to.write_char(':')?;
            }
            if K::PARTS == 1 {
                return write!(to, "{part}");
            }
            part_text.clear();
            write!(part_text, "{part}")?;
            part_text.chars().try_for_each(|one| match one {
                '%' => to.write_str("%25"),
                ':' => to.write_str("%3A"),
                one => to.write_char(one),
            })
        };
        if shown.is_ok() {
            shown = show();
        }
    });
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rendered<K: SpaceKey>(key: &K) -> String {
        let mut text = String::new();
        render(key, &mut text).unwrap();
        text
    }

    #[test]
    fn keys_are_what_displays_and_tuples_never_coincide() {
        assert_eq!(rendered(&7), "7");
        assert_eq!(rendered(&"a:b%"), "a:b%");
        assert_eq!(rendered(&(7, "eur")), "7:eur");
        assert_eq!(rendered(&(1, 'x', true, "y".to_owned())), "1:x:true:y");
        assert_ne!(rendered(&("a:b", "c")), rendered(&("a", "b:c")));
        assert_ne!(rendered(&("a%3Ab", "c")), rendered(&("a:b", "c")));
        assert_eq!(rendered(&Shown(std::net::Ipv4Addr::LOCALHOST)), "127.0.0.1");
        assert_eq!(<((u8, u8), u8) as SpaceKey>::PARTS, 3);
    }
}
