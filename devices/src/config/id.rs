//! The id of a device: what commands and messages call it.

use serde::de::Error;
use serde::{Deserialize, Deserializer};

use super::OptionError;

/// The longest id, in bytes.
const MAX: usize = 96;

/// An id in a file.
pub(super) fn in_file<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let id = Option::<String>::deserialize(from)?;
    check_id(id.as_deref()).map_err(|error| match error {
        // The key is named already.
        OptionError::Value(_, id, cause) => D::Error::custom(format!("{id:?}: {cause}")),
        error => D::Error::custom(error),
    })?;
    Ok(id)
}

/// Checks an id, if one is given. That no two devices have the same is for whoever knows them all.
pub(super) fn check_id(id: Option<&str>) -> Result<(), OptionError> {
    let fine = |id: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
        (1..=MAX).contains(&id.len()) && id.bytes().all(known)
    };
    match id {
        Some(id) if !fine(id) => {
            let cause = format!("an id has 1 to {MAX} of A-Z, a-z, 0-9, - and _");
            Err(OptionError::Value("id", id.to_owned(), cause))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{BalloonConfig, BlkConfig, NetConfig, OptionError, VsockConfig};

    #[test]
    fn an_id_is_a_short_word_for_every_device() {
        let long = "x".repeat(97);
        for (id, fits) in [
            ("root", true),
            ("a-B_9", true),
            (&long[..96], true),
            (&long, false),
            ("", false),
            ("a b", false),
            ("a/b", false),
            ("ä", false),
        ] {
            let cause = if id.is_empty() {
                "it is empty"
            } else {
                "1 to 96 of A-Z"
            };
            let refused = |result: Result<(), OptionError>| {
                result.is_err_and(|error| error.to_string().contains(cause))
            };
            let all = [
                format!("x.img,id={id}").parse::<BlkConfig>().map(drop),
                format!("tap0,id={id}").parse::<NetConfig>().map(drop),
                format!("cid=3,path=x,id={id}")
                    .parse::<VsockConfig>()
                    .map(drop),
                format!("id={id}").parse::<BalloonConfig>().map(drop),
            ];
            for result in all {
                assert_eq!(result.is_ok(), fits, "{id}: {result:?}");
                assert_eq!(refused(result), !fits, "{id}");
            }
        }
    }
}
