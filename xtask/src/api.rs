//! `cargo xtask api`: the public API of the library as text, an item a line, so that a change of it is seen.
//!
//! rustdoc tells what there is, in a form (JSON) that stable Rust offers to those only who say that they know
//! (RUSTC_BOOTSTRAP), and that a later version writes in another format: then the listing waits for a version of the
//! crate public-api that reads it.

use std::process::Command;

use fs_err as fs;

use crate::build::{cargo_command, target};
use crate::step::{Result, run, timed};

/// What is committed.
const LISTING: &str = "docs/public-api.txt";
/// The format of the JSON that the crate public-api reads here.
#[cfg(feature = "api")]
const FORMAT: &str = "57";

/// Writes the listing, or compares it with the one that is committed. Says what was left out.
pub(crate) fn listing(compare: bool) -> Result<Option<String>> {
    timed("the public API", || {
        let mut command = cargo_command();
        command.args(["run", "--quiet", "--package", "xtask", "--features", "api"]);
        command.args(["--", "api-text"]);
        let said = crate::step::text(&mut command)?;
        if let Some(reason) = said.strip_prefix(SKIPPED) {
            return Ok(Some(reason.to_owned()));
        }
        let text = said + "\n";
        if !compare {
            fs::write(LISTING, text)?;
            return Ok(None);
        }
        if fs::read_to_string(LISTING)? == text {
            return Ok(None);
        }
        let new = target().join("public-api.txt");
        fs::write(&new, text)?;
        // It says with 1 that there is a difference.
        let _ = run(Command::new("diff").args(["-u", LISTING]).arg(&new));
        Err(format!(
            "the public API is not what {LISTING} says; if the change is meant, `cargo xtask api` writes it down, and \
             CHANGELOG.md tells of it"
        )
        .into())
    })
}

/// How an answer begins that is none.
const SKIPPED: &str = "SKIPPED: ";

/// Prints the listing.
#[cfg(feature = "api")]
pub(crate) fn print() -> Result<()> {
    match text()? {
        Ok(text) => print!("{text}"),
        Err(reason) => println!("{SKIPPED}{reason}"),
    }
    Ok(())
}

#[cfg(not(feature = "api"))]
pub(crate) fn print() -> Result<()> {
    Err("built without the feature api; `cargo xtask api` switches it on".into())
}

/// The listing, or why there is none with this toolchain.
#[cfg(feature = "api")]
fn text() -> Result<std::result::Result<String, String>> {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    let mut text = String::from(
        "# The public API of the library, an item a line. `cargo xtask api` writes this file.\n",
    );
    let Some(library) = items("vmm-reference", "vmm_reference")? else {
        return Ok(Err(format!(
            "the listing of the public API: this Rust's rustdoc does not write the format {FORMAT}"
        )));
    };
    // What the library has of others, by name.
    let names: BTreeSet<&str> = library
        .iter()
        .filter_map(|item| item.strip_prefix("pub use vmm_reference::"))
        .collect();
    let mut list = |title: &str, items: &mut dyn Iterator<Item = &String>| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "\n## {title}\n");
        items.for_each(|item| {
            let _ = writeln!(text, "{item}");
        });
    };
    list("vmm_reference", &mut library.iter());
    let devices = items("vmm-devices", "devices")?.unwrap_or_default();
    let mut of_library = devices.iter().filter(|item| {
        let words = item.split(|c: char| !c.is_alphanumeric() && c != '_');
        let path = words.filter(|word| !word.is_empty());
        let mut path = path.skip_while(|word| *word != "devices").skip(1);
        let name = path.find(|word| *word != "config");
        name.is_some_and(|name| names.contains(name))
    });
    list("vmm_devices, as far as it is re-exported", &mut of_library);
    let arch = items("vmm-arch", "arch")?.unwrap_or_default();
    list("vmm_arch, which is vmm_reference::arch", &mut arch.iter());
    Ok(Ok(text))
}

/// The items of a crate, sorted; of the traits that are derived, the impls alone. `None` when rustdoc writes another
/// format.
#[cfg(feature = "api")]
fn items(package: &str, library: &str) -> Result<Option<Vec<String>>> {
    use std::collections::BTreeSet;

    // The variable has build scripts of dependencies run again.
    let folder = target().join("api");
    let mut command = cargo_command();
    command
        .args(["rustdoc", "--quiet", "--lib", "--package", package, "--"])
        .args(["-Z", "unstable-options", "--output-format", "json"])
        .env("CARGO_TARGET_DIR", &folder)
        .env("RUSTC_BOOTSTRAP", "1");
    run(&mut command)?;
    let file = folder.join("doc").join(library).with_extension("json");
    let json = fs::read_to_string(&file)?;
    let format = json.rsplit_once("\"format_version\":");
    if format.is_none_or(|(_, rest)| rest.trim_end_matches('}') != FORMAT) {
        return Ok(None);
    }
    let all = |with_derived: bool| -> Result<Vec<String>> {
        let api = public_api::Builder::from_rustdoc_json(&file)
            .omit_blanket_impls(true)
            .omit_auto_trait_impls(true)
            .omit_auto_derived_impls(!with_derived)
            .build()?;
        Ok(api.items().map(ToString::to_string).collect())
    };
    let written: BTreeSet<String> = all(false)?.into_iter().collect();
    let mut items = all(true)?;
    items.retain(|item| {
        written.contains(item) || item.starts_with("impl") && !item.contains("StructuralPartialEq")
    });
    Ok(Some(items))
}
