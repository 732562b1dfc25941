//! What the device tree says about the machine (Devicetree Specification 0.4, chapter 3), the same
//! for every architecture that boots with one.
//!
//! Assumes that buses translate no addresses.

use crate::fdt::{Fdt, Node, Range};

/// RAM (3.4).
pub fn memory<'a>(tree: &Fdt<'a>) -> impl Iterator<Item = Range> + Clone + use<'a> {
    tree.nodes()
        .filter(|node| node.depth == 1 && is(node, b"memory"))
        .flat_map(|node| node.reg())
        .filter(|range| range.len != 0)
}

/// The numbers of the vCPUs that may be used (3.8).
pub fn cpus<'a>(tree: &Fdt<'a>) -> impl Iterator<Item = u64> + Clone + use<'a> {
    tree.nodes()
        .filter(|node| node.depth == 2 && is(node, b"cpu"))
        .filter_map(|node| Some(node.reg().next()?.base))
}

/// The command line (3.6).
pub fn bootargs<'a>(tree: &Fdt<'a>) -> Option<&'a [u8]> {
    tree.find(b"/chosen")?.text(b"bootargs")
}

/// The base of the UART of this kind that is the console, or of the first one.
pub fn uart(tree: &Fdt<'_>, binding: &[u8]) -> Option<u64> {
    let is_uart = |node: &Node<'_>| node.is_compatible(binding) && node.is_enabled();
    let node = stdout(tree)
        .filter(is_uart)
        .or_else(|| tree.nodes().find(is_uart))?;
    Some(node.reg().next()?.base)
}

fn is(node: &Node<'_>, device_type: &[u8]) -> bool {
    node.text(b"device_type") == Some(device_type) && node.is_enabled()
}

/// The node that `stdout-path` names by its path or an alias, with options behind a colon.
fn stdout<'a>(tree: &Fdt<'a>) -> Option<Node<'a>> {
    let value = tree.find(b"/chosen")?.text(b"stdout-path")?;
    let path = value.split(|&byte| byte == b':').next()?;
    if path.starts_with(b"/") {
        return tree.find(path);
    }
    tree.find(tree.find(b"/aliases")?.text(path)?)
}
