/* SPDX-License-Identifier: MIT */
/*
 * A guest that is not there: KVM_RUN is answered at once, without entering the kernel, so that what remains of
 * an exit's time is our own. Armed, it behaves like a guest that accesses port 0x3f8 some number of times and
 * then halts, over and over.
 */
#ifndef STUB_H
#define STUB_H

#include <stdbool.h>
#include <stdint.h>

/* From the next KVM_RUN on: this many accesses, then a halt. 0 exits: KVM_RUN is the kernel's again. */
__attribute__((visibility("default"))) int stub_arm(uint64_t exits, bool reads);
/* Nanoseconds of one KVM_RUN answered by the stub, from a loop of this many that does nothing else. */
__attribute__((visibility("default"))) double stub_cost(uint64_t exits);

#endif
