//! The configuration space of a function: type 0, 256 bytes. What lies beyond, in the extended
//! space, reads as zero: there are no extended capabilities.

/// Bytes that a function has.
pub(crate) const SIZE: usize = 0x100;

/// Offsets (PCI Local Bus Specification 3.0, 6.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
/// Where capabilities may begin.
const FIRST_CAPABILITY: usize = 0x40;

/// Bits of the command register: memory accesses are answered; the function may access memory;
/// INTx is off.
const MEMORY_SPACE: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const INTX_OFF: u16 = 1 << 10;
/// Bit of the status register: there is a list of capabilities.
const HAS_CAPABILITIES: u16 = 1 << 4;
/// What is not an address in a memory BAR (6.2.5.1); all zero means 32 bits, not prefetchable.
const BAR_FLAGS: u32 = 0xf;

/// What never changes of a function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Class, subclass, programming interface.
    pub(crate) class: [u8; 3],
}

/// A configuration space. Any access is legal.
#[derive(Debug)]
pub(crate) struct Config {
    bytes: [u8; SIZE],
    /// The bits that the guest may write.
    writable: [u8; SIZE],
    /// Where the list of capabilities has its last link, and where the next one goes.
    last_link: usize,
    next: usize,
}

impl Config {
    pub(crate) fn new(header: Header) -> Self {
        let mut config = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            last_link: CAPABILITIES,
            next: FIRST_CAPABILITY,
        };
        let [class, subclass, interface] = header.class;
        config.set(0, &header.vendor.to_le_bytes());
        config.set(2, &header.device.to_le_bytes());
        config.set(0x08, &[header.revision, interface, subclass, class]);
        config.set(SUBSYSTEM, &header.vendor.to_le_bytes());
        config.set(SUBSYSTEM + 2, &header.device.to_le_bytes());
        config
    }

    fn set(&mut self, offset: usize, bytes: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }

    /// Lets the guest write bits of a part.
    pub(crate) fn allow(&mut self, offset: usize, bits: &[u8]) {
        for (to, from) in self.writable.iter_mut().skip(offset).zip(bits) {
            *to |= *from;
        }
    }

    /// Gives the function BAR 0 with so many bytes, a power of two, at first at `base`, and memory
    /// accesses on.
    pub(crate) fn add_bar(&mut self, base: u32, size: u32) {
        self.set(BAR0, &(base & !BAR_FLAGS).to_le_bytes());
        let address = !size.saturating_sub(1) & !BAR_FLAGS;
        self.allow(BAR0, &address.to_le_bytes());
        let command = MEMORY_SPACE | BUS_MASTER | INTX_OFF;
        self.allow(COMMAND, &command.to_le_bytes());
        self.set(COMMAND, &MEMORY_SPACE.to_le_bytes());
    }

    /// Adds a capability with this content behind its id and its link; gives its offset.
    pub(crate) fn add_capability(&mut self, id: u8, content: &[u8]) -> usize {
        let offset = self.next;
        let link = u8::try_from(offset).unwrap_or_default();
        self.set(self.last_link, &[link]);
        self.set(offset, &[id]);
        self.set(offset + 2, content);
        self.set(STATUS, &HAS_CAPABILITIES.to_le_bytes());
        self.last_link = offset + 1;
        self.next = (offset + 2 + content.len()).next_multiple_of(4);
        offset
    }

    /// Where BAR 0 answers now.
    pub(crate) fn bar(&self) -> Option<u32> {
        let [command, _] = self.get(COMMAND);
        let base = u32::from_le_bytes(self.get(BAR0)) & !BAR_FLAGS;
        (u16::from(command) & MEMORY_SPACE != 0 && base != 0).then_some(base)
    }

    /// Whether the function may access memory.
    pub(crate) fn is_bus_master(&self) -> bool {
        u16::from_le_bytes(self.get(COMMAND)) & BUS_MASTER != 0
    }

    /// Bytes from an offset on.
    pub(crate) fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    pub(crate) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        for (to, from) in data.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
    }

    pub(crate) fn write(&mut self, offset: usize, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((to, writable), from) in places.zip(data) {
            *to = *to & !writable | from & writable;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config() -> Config {
        let mut config = Config::new(Header {
            vendor: 0x1234,
            device: 0x5678,
            revision: 9,
            class: [1, 2, 3],
        });
        config.add_bar(0xc000_0000, 0x8000);
        config
    }

    #[test]
    fn the_header_has_the_layout_of_the_specification() {
        let config = config();
        assert_eq!(config.get(0), [0x34, 0x12, 0x78, 0x56]);
        assert_eq!(config.get(8), [9, 3, 2, 1]);
        assert_eq!(config.get(0x0e), [0], "header type 0, one function");
        assert_eq!(config.get(0x3d), [0], "no interrupt pin");
    }

    #[test]
    fn a_bar_tells_its_size_and_moves_when_memory_is_on() {
        let mut config = config();
        assert_eq!(config.bar(), Some(0xc000_0000));
        config.write(BAR0, &[0xff; 4]);
        assert_eq!(config.get(BAR0), 0xffff_8000_u32.to_le_bytes());
        config.write(BAR0, &0xd000_4321_u32.to_le_bytes());
        assert_eq!(config.bar(), Some(0xd000_0000));
        config.write(COMMAND, &[0, 0]);
        assert_eq!(config.bar(), None);
        config.write(COMMAND, &[0xff; 4]);
        assert_eq!(config.get(COMMAND), [0x06, 0x04, 0, 0]);
        config.write(BAR0, &[0; 4]);
        assert_eq!(config.bar(), None, "nowhere");
        // There is one BAR, and no ROM.
        for offset in [0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
            config.write(offset, &[0xff; 4]);
            assert_eq!(config.get(offset), [0; 4]);
        }
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut config = config();
        assert_eq!(config.add_capability(9, &[3, 7, 7]), 0x40);
        assert_eq!(config.add_capability(0x11, &[5, 6]), 0x48);
        assert_eq!(config.get(CAPABILITIES), [0x40]);
        assert_eq!(config.get(0x40), [9, 0x48, 3, 7, 7]);
        assert_eq!(config.get(0x48), [0x11, 0, 5, 6]);
        assert_eq!(config.get::<1>(STATUS), [0x10]);
    }

    proptest! {
        #[test]
        fn r24_accesses_of_any_kind_change_only_what_is_writable(
            offset in 0usize..0x1010,
            data in proptest::collection::vec(any::<u8>(), 0..16),
        ) {
            let mut config = config();
            config.add_capability(0x11, &[5, 6]);
            let before = config.bytes;
            config.write(offset, &data);
            for ((place, before), after) in before.iter().enumerate().zip(config.bytes) {
                prop_assert_eq!((before ^ after) & !config.writable[place], 0);
            }
            let mut back = vec![0xaa; data.len()];
            config.read(offset, &mut back);
            for (place, byte) in (offset..).zip(back) {
                prop_assert_eq!(byte, config.bytes.get(place).copied().unwrap_or(0));
            }
        }
    }
}
