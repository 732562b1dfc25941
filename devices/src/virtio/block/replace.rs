//! Another file behind a disk that is there, with or without a driver.

use super::file::Opened;
use super::{Block, BlockError};
use crate::ChangeError;
use crate::config::BlkConfig;
use crate::descriptor::DiskFile;
use crate::virtio::{Queues, VirtioDevice};

/// Where the configuration has the number of sectors (5.2.4).
const CAPACITY: usize = 0;

impl Block {
    /// Everything is as before when this fails.
    pub(super) fn replace(
        &mut self,
        file: DiskFile,
        name: &str,
        mut queues: Option<&mut Queues>,
    ) -> Result<(), ChangeError> {
        let config = BlkConfig {
            path: name.into(),
            read_only: self.read_only,
            direct: self.buffered.is_some(),
            lock: self.lock,
            ..BlkConfig::default()
        };
        let opened = Opened::of(file, &config).map_err(refused)?;
        if queues.is_some() && opened.shape.block != self.block {
            return Err(ChangeError::Refused(format!(
                "its blocks have {} bytes, and the driver was told of {}; reset the guest first, or unload its driver",
                opened.shape.block, self.block
            )));
        }
        let zeros = opened
            .shape
            .zeros()
            .map_err(|error| refused(error.into()))?;
        let Opened {
            file,
            buffered,
            alignment,
            shape,
        } = opened.lock(&config).map_err(refused)?;
        // What has begun ends in the old file.
        if let Some(queues) = queues.as_deref_mut()
            && self.quiesce(queues).is_err()
        {
            self.stop();
            let cause = "its driver broke a rule of a queue";
            return Err(ChangeError::Refused(cause.to_owned()));
        }
        (self.file, self.buffered, self.alignment) = (file, buffered, alignment);
        (self.zeros, self.size, self.sectors) = (zeros, shape.size, shape.sectors);
        self.path = config.path;
        self.block = shape.block;
        match queues {
            Some(queues) => {
                self.config.update(CAPACITY, &shape.sectors.to_le_bytes());
                queues.config_changed();
            }
            // Of its blocks the next driver reads, too.
            None => self.config.update(0, &self.describe(&shape)),
        }
        self.tell();
        Ok(())
    }
}

fn refused(error: BlockError) -> ChangeError {
    ChangeError::Refused(error.to_string())
}
