//! Cgroups: one for each jail, `PARENT/ID` where they are mounted.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::arguments::{CgroupWish, Property, Version};
use crate::error::{JailerError, Result, on};

/// Where the kernel tells what is mounted.
const MOUNTS: &str = "/proc/mounts";
/// Version 2: moves the process with all its threads.
const PROCS: &str = "cgroup.procs";
/// Version 1: moves a thread, and the jailer has one.
const TASKS: &str = "tasks";
/// Version 2: what cgroups below may use.
const SUBTREE: &str = "cgroup.subtree_control";
/// Version 1: a new cgroup takes no process before these are filled.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// What is to be done, checked as far as it can be without changing anything.
#[derive(Debug)]
pub(crate) enum Plan<'a> {
    Nothing,
    /// Join a cgroup that is there.
    Join(PathBuf),
    /// Make cgroups, one for each hierarchy.
    Make(Version, Vec<Group<'a>>),
}

/// A cgroup to be made.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    /// Where its hierarchy is mounted.
    mount: PathBuf,
    /// From there.
    path: PathBuf,
    properties: Vec<&'a Property>,
}

/// `name`: of the program. `mounts`: as /proc/mounts has it.
fn plan<'a>(wish: &'a CgroupWish, name: &Path, id: &str, mounts: &str) -> Result<Plan<'a>> {
    let parent = wish.parent.as_deref().unwrap_or(name);
    let mounts: Vec<_> = mounts.lines().filter_map(Mount::parse).collect();
    let of_kind = |kind| mounts.iter().filter(move |mount| mount.kind == kind);
    if wish.properties.is_empty() {
        if wish.version == Version::V1 {
            return Ok(Plan::Nothing);
        }
        let mount = of_kind("cgroup2")
            .next()
            .ok_or(JailerError::CgroupHierarchy(2))?;
        let cgroup = mount.folder.join(parent);
        return Ok(if cgroup.is_dir() {
            Plan::Join(cgroup)
        } else {
            Plan::Nothing
        });
    }
    let (kind, number) = match wish.version {
        Version::V1 => ("cgroup", 1),
        Version::V2 => ("cgroup2", 2),
    };
    of_kind(kind)
        .next()
        .ok_or(JailerError::CgroupHierarchy(number))?;
    let mut groups: Vec<Group<'_>> = Vec::new();
    for property in &wish.properties {
        let controller = property.controller();
        let mut offering = of_kind(kind).filter(|mount| match wish.version {
            Version::V1 => mount.options.split(',').any(|option| option == controller),
            Version::V2 => {
                controller == "cgroup"
                    || has_word(&mount.folder.join("cgroup.controllers"), controller)
            }
        });
        let mount = offering
            .next()
            .ok_or_else(|| JailerError::CgroupController(controller.to_owned()))?;
        match groups.iter_mut().find(|group| group.mount == mount.folder) {
            Some(group) => group.properties.push(property),
            None => groups.push(Group {
                mount: mount.folder.clone(),
                path: parent.join(id),
                properties: vec![property],
            }),
        }
    }
    Ok(Plan::Make(wish.version, groups))
}

impl<'a> Plan<'a> {
    pub(crate) fn new(wish: &'a CgroupWish, name: &Path, id: &str) -> Result<Self> {
        if wish.version == Version::V1 && wish.properties.is_empty() {
            return Ok(Self::Nothing);
        }
        let mounts = fs::read_to_string(MOUNTS).map_err(on("read", MOUNTS))?;
        plan(wish, name, id, &mounts)
    }

    /// Moves this process. All values are written before it joins anything: some cgroups take no process without.
    pub(crate) fn carry_out(&self) -> Result<()> {
        match self {
            Self::Nothing => Ok(()),
            Self::Join(path) => {
                write(&path.join(PROCS), "0").map_err(|source| JailerError::CgroupMove {
                    path: path.clone(),
                    source,
                })
            }
            Self::Make(version, groups) => {
                for group in groups {
                    group.make(*version)?;
                }
                // 0 is who writes.
                let file = match version {
                    Version::V1 => TASKS,
                    Version::V2 => PROCS,
                };
                groups
                    .iter()
                    .try_for_each(|group| put(&group.folder().join(file), "0"))
            }
        }
    }
}

impl Group<'_> {
    fn folder(&self) -> PathBuf {
        self.mount.join(&self.path)
    }

    fn make(&self, version: Version) -> Result<()> {
        let folder = self.folder();
        fs::create_dir_all(&folder).map_err(on("create the cgroup", &folder))?;
        match version {
            Version::V1 => self.inherit()?,
            Version::V2 => self.enable()?,
        }
        self.properties
            .iter()
            .try_for_each(|property| put(&folder.join(&property.file), &property.value))
    }

    /// The folders from the one below the mount to its own.
    fn way(&self) -> impl Iterator<Item = PathBuf> {
        let mut folder = self.mount.clone();
        self.path.components().map(move |part| {
            folder.push(part);
            folder.clone()
        })
    }

    /// Fills what is empty in new cgroups with what the one above has. Another jailer may do so at the same time, with
    /// the same values.
    fn inherit(&self) -> Result<()> {
        let is_cpuset = self
            .properties
            .iter()
            .any(|property| property.controller() == "cpuset");
        let cpuset = CPUSET.into_iter().filter(|_| is_cpuset);
        let given = self
            .properties
            .iter()
            .map(|property| property.file.as_str());
        for file in given.chain(cpuset) {
            // A file that cannot be read has nothing to hand down.
            let Ok(mut above) = fs::read_to_string(self.mount.join(file)) else {
                continue;
            };
            for folder in self.way() {
                let path = folder.join(file);
                let mut value = fs::read_to_string(&path).map_err(on("read", &path))?;
                if value.trim().is_empty() && !above.trim().is_empty() {
                    put(&path, above.trim())?;
                    value = above;
                }
                above = value;
            }
            if above.trim().is_empty() && CPUSET.contains(&file) {
                return Err(JailerError::CgroupInherit {
                    path: self.folder(),
                    file: file.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Lets the cgroups above hand its controllers on, each once.
    fn enable(&self) -> Result<()> {
        let mut controllers: Vec<_> = self
            .properties
            .iter()
            .map(|property| property.controller())
            .collect();
        controllers.sort_unstable();
        controllers.dedup();
        let folders: Vec<_> = std::iter::once(self.mount.clone())
            .chain(self.way())
            .collect();
        for controller in controllers
            .into_iter()
            .filter(|controller| *controller != "cgroup")
        {
            // Not its own: a cgroup with processes hands nothing on.
            for folder in &folders[..folders.len() - 1] {
                let path = folder.join(SUBTREE);
                // One that is handed down to this container may hand it on already and not be ours to change.
                let written = put(&path, &format!("+{controller}"));
                if written.is_err() && !has_word(&path, controller) {
                    return written;
                }
            }
        }
        Ok(())
    }
}

fn has_word(path: &Path, word: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|other| other == word))
}

/// In one call, as the kernel takes it; a file that is not there is not made.
fn write(path: &Path, value: &str) -> io::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .open(path)?
        .write(value.as_bytes())?;
    if written == value.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

fn put(path: &Path, value: &str) -> Result<()> {
    write(path, value).map_err(|source| JailerError::CgroupWrite {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    })
}

/// A line of /proc/mounts.
#[derive(Debug)]
struct Mount<'a> {
    folder: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(' ').skip(1);
        let (folder, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        // What would part fields is written in octal (proc_pid_mounts(5)).
        let folder = folder
            .replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\");
        Some(Self {
            folder: folder.into(),
            kind,
            options,
        })
    }
}

#[cfg(test)]
mod tests;
