//! The name of a tap device.

use super::error::OptionError;

/// The longest name of a network device of the host (IFNAMSIZ without the end).
const MAX_TAP_NAME: usize = 15;

/// What Linux takes as a name (`dev_valid_name`), without `%`, which it would replace by a number.
pub(super) fn tap_name(name: &str) -> Result<(), OptionError> {
    let strange = |c: char| c.is_whitespace() || c.is_control() || "/:%".contains(c);
    let fits = (1..=MAX_TAP_NAME).contains(&name.len());
    if !fits || name.contains(strange) || [".", ".."].contains(&name) {
        let cause = format!(
            "a name has 1 to {MAX_TAP_NAME} bytes, no blank and no /, : or %; it is not . or .."
        );
        return Err(OptionError::Value("tap", name.to_owned(), cause));
    }
    Ok(())
}
