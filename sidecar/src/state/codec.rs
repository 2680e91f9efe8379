//! Fields with a length before each: what is inside the state files. The reader takes nothing on trust and gives
//! views; what the writer holds is wiped.

use zeroize::Zeroizing;

use super::Refused;

/// Collects fields. The buffer is made once in its full size where it holds a secret, so that it is not moved.
pub struct Writer(Zeroizing<Vec<u8>>);

/// Takes fields off the front.
pub struct Reader<'a>(&'a [u8]);

impl Writer {
    /// Room for `capacity` bytes, the lengths (4 bytes for each field) included.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(capacity)))
    }

    /// One field. What is longer than 4 GiB is cut, and the reader refuses it.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.number(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
        self
    }

    /// A count or a length.
    fn number(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    /// A list of fields, its length first.
    pub fn list<T: AsRef<[u8]>>(&mut self, list: &[T]) -> &mut Self {
        self.number(u32::try_from(list.len()).unwrap_or(u32::MAX));
        for item in list {
            self.bytes(item.as_ref());
        }
        self
    }

    /// Everything written.
    #[must_use]
    pub fn finish(self) -> Zeroizing<Vec<u8>> {
        self.0
    }
}

impl<'a> Reader<'a> {
    /// Of a whole body.
    #[must_use]
    pub const fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn number(&mut self) -> Result<usize, Refused> {
        let (number, rest) = self.0.split_first_chunk::<4>().ok_or_else(malformed)?;
        self.0 = rest;
        usize::try_from(u32::from_be_bytes(*number)).map_err(|_| malformed())
    }

    /// One field.
    ///
    /// # Errors
    /// When the body ends inside it.
    pub fn bytes(&mut self) -> Result<&'a [u8], Refused> {
        let length = self.number()?;
        let (field, rest) = self.0.split_at_checked(length).ok_or_else(malformed)?;
        self.0 = rest;
        Ok(field)
    }

    /// One field that is text.
    ///
    /// # Errors
    /// When the body ends inside it or it is not UTF-8.
    pub fn text(&mut self) -> Result<String, Refused> {
        std::str::from_utf8(self.bytes()?).map(str::to_owned).map_err(|_| malformed())
    }

    /// A list, each item taken by `item`.
    ///
    /// # Errors
    /// When the body ends inside it.
    pub fn list<T>(&mut self, mut item: impl FnMut(&mut Self) -> Result<T, Refused>) -> Result<Vec<T>, Refused> {
        // Nothing is reserved by what the length says.
        (0..self.number()?).map(|_| item(self)).collect()
    }

    /// Nothing is left.
    ///
    /// # Errors
    /// When something is.
    pub fn end(&self) -> Result<(), Refused> {
        if self.0.is_empty() { Ok(()) } else { Err(malformed()) }
    }
}

fn malformed() -> Refused {
    Refused::Content("its fields do not add up".into())
}
