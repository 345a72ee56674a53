//! Lists as scripts read them by `cmsgpack.unpack`: MessagePack, with lengths of four bytes.

/// A list of texts, or of lists. What is written to it last comes last.
#[derive(Debug, Default)]
pub(super) struct List {
    length: u32,
    items: Vec<u8>,
}

const LIST: u8 = 0xdd;
const TEXT: u8 = 0xdb;

impl List {
    /// A list of these texts.
    pub fn of_texts(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> Self {
        texts.into_iter().fold(Self::default(), |list, text| list.with_text(text.as_ref()))
    }

    /// A list of these lists.
    pub fn of_lists(lists: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for list in lists {
            all.items.extend(list.into_bytes());
            all.length += 1;
        }
        all
    }

    /// The list with a further text.
    pub fn with_text(mut self, text: &[u8]) -> Self {
        // Redis takes no longer text.
        let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
        self.items.push(TEXT);
        self.items.extend(length.to_be_bytes());
        self.items.extend(text);
        self.length += 1;
        self
    }

    /// The whole as bytes.
    pub fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.items.len() + 5);
        bytes.push(LIST);
        bytes.extend(self.length.to_be_bytes());
        bytes.extend(self.items);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_scripts_read_them() {
        let list = List::of_lists([List::of_texts(["a", "bc"]), List::default()]);
        let expected = b"\xdd\0\0\0\x02\xdd\0\0\0\x02\xdb\0\0\0\x01a\xdb\0\0\0\x02bc\xdd\0\0\0\0";
        assert_eq!(list.into_bytes(), expected);
    }
}
