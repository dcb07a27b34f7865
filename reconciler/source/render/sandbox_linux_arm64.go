package render

import "golang.org/x/sys/unix"

const thisArch = unix.AUDIT_ARCH_AARCH64

// refusedHere are the calls that only this architecture has.
var refusedHere []uint32
