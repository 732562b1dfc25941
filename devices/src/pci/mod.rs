//! A PCI bus: bus 0 of segment 0, with the host bridge in slot 0 and one function in each further
//! slot (PCI Local Bus Specification 3.0).
//!
//! The bus is built once. All windows for BARs are entries of the machine's frozen bus that belong
//! to the host; which function an access is for is found by where the guest has put its BAR, so that
//! moving one changes nothing else.

mod config;
mod host;
mod msix;

pub(crate) use config::{Config, Header, SIZE as CONFIG_SPACE};
pub use host::{PciFunction, PciHost};
pub use msix::MsiSink;
pub(crate) use msix::{Msix, PBA_ENTRY, TABLE_ENTRY, Vectors};
