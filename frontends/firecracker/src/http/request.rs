//! Requests, as the API sees them.

/// The methods of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Asks for something.
    Get,
    /// Sets something.
    Put,
    /// Changes something.
    Patch,
    /// Takes something away.
    Delete,
}

impl Method {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        [Self::Get, Self::Put, Self::Patch, Self::Delete]
            .into_iter()
            .find(|method| method.name() == name)
    }
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub method: Method,
    /// With what: an absolute path, whatever form the request line has.
    pub path: String,
    /// `None` without one, also when its length is said to be 0.
    pub body: Option<Vec<u8>>,
    /// The client wants the connection closed afterwards.
    pub close: bool,
}
