"""A client on PyPI, firecracker-python, against our `firecracker`: a machine with a network device and metadata is
created, asked, paused, resumed and deleted. `cargo xtask python` runs it, in a network and among processes of its own.

The client looks for its address on the internet and for Docker when it begins, and writes rules for the host's packets:
none of that is here. Where it has the program and its files is said here, too.
"""

import sys

import docker
import firecracker.microvm
from firecracker import MicroVM
from firecracker.config import MicroVMConfig
from firecracker.network import NetworkManager


def prepare(program, folder):
    docker.from_env = lambda: None
    firecracker.microvm.get_public_ip = lambda: "192.0.2.1"
    for name in ("create_masquerade", "delete_masquerade", "delete_all_port_forward"):
        assert callable(getattr(NetworkManager, name)), name
        setattr(NetworkManager, name, lambda self, *_: None)
    plain = MicroVMConfig.__init__

    def here(self, *arguments, **named):
        plain(self, *arguments, **named)
        self.binary_path = program
        self.data_path = folder
        self.snapshot_path = f"{folder}/snapshots"

    MicroVMConfig.__init__ = here


def main(program, folder, kernel, rootfs):
    prepare(program, folder)
    vm = MicroVM(
        name="micro",
        kernel_file=kernel,
        base_rootfs=rootfs,
        vcpu=1,
        memory="128M",
        mmds_enabled=True,
        user_data="#cloud-config",
    )
    name = vm._microvm_id
    assert vm.create() == f"VMM {name} created"
    assert [found["id"] for found in MicroVM.list()] == [name]
    config = vm.config()
    assert config["machine-config"]["mem_size_mib"] == 128, config
    assert config["mmds-config"]["version"] == "V2", config
    metadata = vm._api.mmds.get().json()
    assert metadata["latest"]["user-data"] == "#cloud-config", metadata

    def state():
        return vm._api.describe.get().json()["state"]

    assert state() == "Running"
    assert vm.pause() == f"VMM {name} paused successfully"
    assert state() == "Paused"
    assert vm.resume() == f"VMM {name} resumed successfully"
    assert state() == "Running"
    assert vm.delete() == f"VMM {name} is deleted"
    assert MicroVM.list() == []
    print("created, asked, paused, resumed and deleted")


main(*sys.argv[1:])
