"""Guests, assembled by hand: firmware that sleeps, and boot sectors that use what they have.

A boot sector fits a disk image's first 512 bytes. Each is a list of (machine code, what it says).
The BIOS loads it at 0x7C00 in 16-bit mode, with A20 open and the number of the disk in DL.
Addresses in it are absolute.
"""

from __future__ import annotations

from pathlib import Path

ORIGIN = 0x7C00
MIB = 1 << 20
PAGE = 4096
SECTORS_AT_ONCE = 64  # 32 KiB
FIRMWARE = Path("/run/tests-firmware")
FIRMWARE_SIZE = 64 << 10
RESET_VECTOR = FIRMWARE_SIZE - 16  # the firmware ends at 4 GiB, where a CPU begins 16 bytes before
STOP = ((b"\xfa", "cli"), (b"\xf4", "hlt"), (b"\xeb\xfd", "jmp the hlt before"))
SPIN = ((b"\xeb\xfe", "jmp here"),)
Code = tuple[tuple[bytes, str], ...]


def firmware(code: Code = STOP) -> str:
    """The XML of firmware that is CODE: the vCPU sleeps at once, where a BIOS that finds nothing to
    boot takes an emulated host ten seconds.
    """
    file = FIRMWARE.with_suffix(f".{joined(code).hex()}")
    if not file.exists():
        image = bytearray(FIRMWARE_SIZE)
        image[RESET_VECTOR : RESET_VECTOR + len(joined(code))] = joined(code)
        file.write_bytes(image)
        file.chmod(0o644)
    return f"<loader readonly='yes' type='rom'>{file}</loader>"


def toucher(mib: int, rounds: bool = True) -> bytes:
    """Writes to each page of MIB MiB above the first MiB: again and again, or once, after which the
    vCPU sleeps.
    """
    enter: Code = (
        (b"\xfa", "cli"),
        (b"\x31\xc0", "xor ax, ax"),
        (b"\x8e\xd8", "mov ds, ax"),
        (b"\x0f\x01\x16" + word(ORIGIN + 0x80), "lgdt [the pointer at 0x80]"),
        (b"\x0f\x20\xc0", "mov eax, cr0"),
        (b"\x0c\x01", "or al, 1"),
        (b"\x0f\x22\xc0", "mov cr0, eax"),
        (b"\xea" + word(ORIGIN + 0x20) + word(0x08), "jmp 0x08:0x7c20, where 32-bit code begins"),
    )
    touch: Code = (
        (b"\x66\xb8" + word(0x10), "mov ax, 0x10"),
        (b"\x8e\xd8", "mov ds, ax"),
        (b"\xbf" + double(MIB), "round: mov edi, 1 MiB"),
        (b"\xb9" + double(mib * MIB // PAGE), "mov ecx, number of pages"),
        (b"\xff\x07", "touch: inc dword [edi]"),
        (b"\x81\xc7" + double(PAGE), "add edi, 4096"),
        (b"\x49", "dec ecx"),
        (b"\x75\xf5", "jnz touch"),
        *(((b"\xeb\xe9", "jmp round"),) if rounds else STOP),
    )
    flat = double(0x0000FFFF)
    # null, code and data: 4 GiB from 0
    gdt = bytes(8) + flat + b"\x00\x9a\xcf\x00" + flat + b"\x00\x92\xcf\x00"
    pointer = word(len(gdt) - 1) + double(ORIGIN + 0x90)
    return boot_sector({0: joined(enter), 0x20: joined(touch), 0x80: pointer, 0x90: gdt})


def reader(mib: int) -> bytes:
    """Reads the first MIB MiB of the disk through the BIOS, 32 KiB at a time to the same place;
    then the vCPU sleeps.
    """
    packet, left = ORIGIN + 0x80, ORIGIN + 0x90
    code: Code = (
        (b"\x31\xc0", "xor ax, ax"),
        (b"\x8e\xd8", "mov ds, ax"),
        (b"\x8e\xd0", "mov ss, ax"),
        (b"\xbc" + word(ORIGIN), "mov sp, 0x7c00"),
        (b"\xbe" + word(packet), "read: mov si, packet"),
        (b"\xb4\x42", "mov ah, 0x42"),
        (b"\xcd\x13", "int 0x13"),
        (b"\x83\x06" + word(packet + 8) + bytes([SECTORS_AT_ONCE]), "add word [sector], 64"),
        (b"\x83\x16" + word(packet + 10) + b"\x00", "adc word [sector + 2], 0"),
        (b"\x66\xff\x0e" + word(left), "dec dword [left]"),
        (b"\x75\xe8", "jnz read"),
        *STOP,
    )
    # size of the packet, sectors, where to (0x2000:0), first sector (8 bytes)
    request = word(16) + word(SECTORS_AT_ONCE) + word(0) + word(0x2000) + bytes(8)
    return boot_sector(
        {0: joined(code), 0x80: request, 0x90: double(mib * MIB // 512 // SECTORS_AT_ONCE)}
    )


def boot_sector(parts: dict[int, bytes]) -> bytes:
    sector = bytearray(512)
    for offset, part in parts.items():
        sector[offset : offset + len(part)] = part
    sector[510:] = b"\x55\xaa"
    return bytes(sector)


def joined(code: Code) -> bytes:
    return b"".join(part for part, _ in code)


def word(number: int) -> bytes:
    return number.to_bytes(2, "little")


def double(number: int) -> bytes:
    return number.to_bytes(4, "little")


def disk(image: Path, sector: bytes, mib: int = 1) -> str:
    """Makes IMAGE, a sparse disk of MIB MiB that begins with the boot SECTOR; its XML. The host's
    page cache is used.
    """
    image.write_bytes(sector)
    with image.open("r+b") as file:
        file.truncate(mib * MIB)
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='raw' cache='writeback'/>"
        f"<source file='{image}'/><target dev='vda' bus='virtio'/></disk>"
    )
