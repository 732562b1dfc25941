//! HTTP/1.1 as the clients of this API speak it: a codec from bytes to requests and from answers to bytes, which
//! knows no socket. Answers have the bytes that clients have seen from this API so far, down to the space behind the
//! status code and the order of the headers.

mod decoder;
mod head;
mod request;
mod response;

pub use self::decoder::{Decoder, Step};
pub use self::request::{Method, Request};
pub use self::response::{Response, Status};
