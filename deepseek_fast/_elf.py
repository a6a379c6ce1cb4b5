"""Reads a library's header: the dynamic linker answers another machine's file with "no such file", and crashes on a
file that is cut off."""

import os
import struct
from pathlib import Path

# Elf64_Ehdr, little-endian: identification, type, machine, version, three offsets (the last: of the section table),
# flags, header size, then size and number of program headers, size and number of section headers, one index.
HEADER = struct.Struct("<16s2HI3QI6H")
MACHINES = {3: "i386", 40: "arm", 62: "x86_64", 183: "aarch64", 243: "riscv64"}
REINSTALL = "reinstall deepseek-fast on this machine"


def check_library(path: Path, caller: str) -> None:
    """RuntimeError where the file cannot be read, is cut off, or was built for another machine than runs Python."""
    rule = f"{caller}: library must"
    try:
        with open(path, "rb") as file:
            header, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
        with open("/proc/self/exe", "rb") as file:
            own = file.read(HEADER.size)
    except OSError as error:
        raise RuntimeError(f"{rule} be readable; got '{path}' ({error.strerror}); {REINSTALL}") from error
    if len(header) < HEADER.size:
        raise RuntimeError(f"{rule} be whole; got '{path}', cut off at {size} bytes; {REINSTALL}")
    if _format(header) != _format(own):
        wanted, got = _machine(own), _machine(header)
        raise RuntimeError(f"{rule} be built for this machine, {wanted}; got '{path}' for {got}; {REINSTALL}")
    fields = HEADER.unpack(header)
    if fields[6] + fields[11] * fields[12] > size:  # the section table ends the file
        raise RuntimeError(f"{rule} be whole; got '{path}', cut off at {size} bytes; {REINSTALL}")


def _format(header: bytes) -> bytes:
    """Magic number, word size, byte order and machine."""
    return header[:6] + header[18:20]


def _machine(header: bytes) -> str:
    if header[:4] != b"\x7fELF":
        return "another system"
    machine = HEADER.unpack(header)[2]
    return MACHINES.get(machine, f"machine {machine}")
