//! The flattened device tree (Devicetree Specification 0.4, chapter 5), read in place.
//!
//! Nothing in it is trusted: every access is checked, every step goes forward, and a walk ends at
//! the first thing that makes no sense.

/// Length of the header.
const HEADER: u64 = 40;
/// The largest tree that the kernel protocol allows (booting.rst).
const MAX_SIZE: u64 = 2 << 20;
const MAGIC: u32 = 0xd00d_feed;
/// The levels of nodes that are visited.
const LEVELS: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;

/// A tree.
#[derive(Clone)]
pub struct Fdt<'a>(Tokens<'a>);

/// A node.
#[derive(Clone)]
pub struct Node<'a> {
    /// Its level; the root's is 0.
    pub depth: usize,
    /// Its name with the unit address.
    pub name: &'a [u8],
    cells: Cells,
    tokens: Tokens<'a>,
}

/// One entry of `reg`.
#[derive(Clone, Copy)]
pub struct Range {
    /// The first address.
    pub base: u64,
    /// The length in bytes.
    pub len: u64,
}

/// How many 32-bit cells the children's `reg` has for an address and a length.
#[derive(Clone, Copy)]
struct Cells {
    address: usize,
    size: usize,
}

#[derive(Clone)]
struct Tokens<'a> {
    rest: &'a [u8],
    strings: &'a [u8],
}

enum Token<'a> {
    Begin(&'a [u8]),
    End,
    Property(&'a [u8], &'a [u8]),
}

/// The tree at an address.
///
/// # Safety
/// The kernel protocol has a device tree there that nobody changes any more, mapped one to one.
pub unsafe fn at(address: u64) -> Option<Fdt<'static>> {
    // SAFETY: as the caller promises.
    unsafe {
        let size = size(memory(address, HEADER)?)?;
        Fdt::new(memory(address, size)?)
    }
}

/// The bytes at a physical address. Address 0 is nobody's.
///
/// # Safety
/// The range is RAM that nobody changes any more, or does not exist: then reading it is an
/// exception, which ends the guest.
unsafe fn memory(address: u64, len: u64) -> Option<&'static [u8]> {
    let end = address.checked_add(len)?;
    // SAFETY: as the caller promises.
    (address != 0 && end <= i64::MAX as u64)
        .then(|| unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) })
}

/// The size of the tree with this header.
fn size(header: &[u8]) -> Option<u64> {
    let size = u64::from(u32_at(header, 4)?);
    (u32_at(header, 0)? == MAGIC && (HEADER..=MAX_SIZE).contains(&size)).then_some(size)
}

impl<'a> Fdt<'a> {
    /// The tree in these bytes.
    pub fn new(blob: &'a [u8]) -> Option<Self> {
        let block = |offset, len| {
            let rest = blob.get(u32_at(blob, offset)? as usize..)?;
            rest.get(..u32_at(blob, len)? as usize)
        };
        Some(Self(Tokens {
            rest: block(8, 36)?,
            strings: block(12, 32)?,
        }))
    }

    /// All nodes in their order, the root first.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'a>> + Clone + use<'a> {
        let mut tokens = self.0.clone();
        let mut depth = 0_usize;
        let mut cells = [Cells {
            address: 2,
            size: 1,
        }; LEVELS + 1];
        core::iter::from_fn(move || {
            let name = loop {
                match tokens.next()? {
                    Token::Begin(name) => break name,
                    Token::End => depth = depth.checked_sub(1)?,
                    Token::Property(..) => {}
                }
            };
            let node = Node {
                depth,
                name,
                cells: *cells.get(depth)?,
                tokens: tokens.clone(),
            };
            depth += 1;
            let count = |name, default| match node.property(name) {
                Some(value) => u32_at(value, 0).map(|count| count as usize),
                None => Some(default),
            };
            *cells.get_mut(depth)? = Cells {
                address: count(b"#address-cells", 2)?,
                size: count(b"#size-cells", 1)?,
            };
            Some(node)
        })
    }

    /// The node with this absolute path.
    pub fn find(&self, path: &[u8]) -> Option<Node<'a>> {
        let mut nodes = self.nodes();
        let mut found = nodes.next()?;
        for name in path.strip_prefix(b"/")?.split(|&byte| byte == b'/') {
            let depth = found.depth + 1;
            let mut below = nodes.by_ref().take_while(|node| node.depth >= depth);
            found = below.find(|node| node.depth == depth && node.name == name)?;
        }
        Some(found)
    }
}

impl<'a> Node<'a> {
    /// The value of a property.
    pub fn property(&self, name: &[u8]) -> Option<&'a [u8]> {
        // A node's properties precede its children.
        for token in self.tokens.clone() {
            match token {
                Token::Property(its_name, value) if its_name == name => return Some(value),
                Token::Property(..) => {}
                Token::Begin(_) | Token::End => break,
            }
        }
        None
    }

    /// A property's text without its final zero.
    pub fn text(&self, name: &[u8]) -> Option<&'a [u8]> {
        before_zero(self.property(name)?)
    }

    /// Whether it is compatible with a binding.
    pub fn is_compatible(&self, binding: &[u8]) -> bool {
        let compatible = self.property(b"compatible").unwrap_or_default();
        compatible
            .split(|&byte| byte == 0)
            .any(|name| name == binding)
    }

    /// Whether it may be used.
    pub fn is_enabled(&self) -> bool {
        matches!(self.text(b"status"), None | Some(b"okay" | b"ok"))
    }

    /// The entries of `reg`, in its parent's cells.
    pub fn reg(&self) -> impl Iterator<Item = Range> + Clone + use<'a> {
        let Cells { address, size } = self.cells;
        let entries = self.property(b"reg").unwrap_or_default();
        let entries = entries.chunks_exact((4 * (address + size)).max(1));
        entries.filter_map(move |entry| {
            let (base, len) = entry.split_at_checked(4 * address)?;
            Some(Range {
                base: number(base)?,
                len: number(len)?,
            })
        })
    }
}

impl Tokens<'_> {
    fn word(&mut self) -> Option<u32> {
        let word = u32_at(self.rest, 0)?;
        self.skip(4)?;
        Some(word)
    }

    /// Goes behind `len` bytes and their padding.
    fn skip(&mut self, len: usize) -> Option<()> {
        self.rest = self.rest.get(len.checked_next_multiple_of(4)?..)?;
        Some(())
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        loop {
            match self.word()? {
                BEGIN_NODE => {
                    let name = before_zero(self.rest)?;
                    self.skip(name.len() + 1)?;
                    return Some(Token::Begin(name));
                }
                END_NODE => return Some(Token::End),
                PROP => {
                    let len = self.word()? as usize;
                    let name = before_zero(self.strings.get(self.word()? as usize..)?)?;
                    let value = self.rest.get(..len)?;
                    self.skip(len)?;
                    return Some(Token::Property(name, value));
                }
                NOP => {}
                _ => return None,
            }
        }
    }
}

fn before_zero(bytes: &[u8]) -> Option<&[u8]> {
    bytes.get(..bytes.iter().position(|&byte| byte == 0)?)
}

/// A big-endian 32-bit number.
fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    let number = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_be_bytes(*number))
}

/// A big-endian number of at most two cells.
fn number(cells: &[u8]) -> Option<u64> {
    let fold = |number, &byte| number << 8 | u64::from(byte);
    matches!(cells.len(), 0 | 4 | 8).then(|| cells.iter().fold(0, fold))
}
