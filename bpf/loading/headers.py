"""A minimal header tree, so that bcc compiles XDP programs on any kernel without that kernel's headers.

bcc requires a kernel build tree. The program uses only its fixed-width types and the uapi headers, which Debian ships in
linux-libc-dev. Must not know the C files.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

_TYPES = """#pragma once
#include_next <linux/types.h>
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef _Bool bool; typedef __SIZE_TYPE__ size_t; typedef unsigned long uintptr_t;
#define true 1
#define false 0
#define NULL ((void *)0)
#define htons(x) __builtin_bswap16(x)
#define ntohs(x) __builtin_bswap16(x)
#define htonl(x) __builtin_bswap32(x)
#define ntohl(x) __builtin_bswap32(x)
"""


def make_header_tree(root: Path) -> None:
    """Write the tree into the existing directory `root`, to be named by BCC_KERNEL_SOURCE."""
    major, minor, patch = _kernel_version(os.uname().release)
    files = {
        "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
        "linux/log2.h": "",
        "linux/types.h": _TYPES,
        "linux/version.h": f"#define LINUX_VERSION_CODE {(major << 16) + (minor << 8) + min(patch, 255)}\n"
        "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + ((c) > 255 ? 255 : (c)))\n",
        "asm/page.h": "#define PAGE_SIZE 4096\n",
    }
    for name, text in files.items():
        path = root / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / "include" / "uapi").symlink_to("/usr/include")


def compiler_flags() -> list[str]:
    """Flags that make clang read the uapi headers of linux-libc-dev instead of a kernel tree's, and compile fast.

    bcc optimises what clang hands it, so clang's own passes are left out; without debug information nothing but the
    source lines in the verifier's log is lost. Together that is half of the compile time.
    """
    speed = ["-O2", "-g0", "-Xclang", "-disable-llvm-passes"]
    return [*speed, "-D__LINUX_BPF_H__", *include_flags()]


def include_flags() -> list[str]:
    """Flags that name the directories of linux-libc-dev."""
    triplet = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    return ["-isystem", "/usr/include", "-isystem", f"/usr/include/{triplet}"]


def _kernel_version(release: str) -> tuple[int, int, int]:
    numbers = [int(part) for part in release.split("-")[0].split(".")[:3] if part.isdigit()]
    major, minor, patch = (*numbers, 0, 0, 0)[:3]
    return major, minor, patch
