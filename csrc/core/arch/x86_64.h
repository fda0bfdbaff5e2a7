/* SPDX-License-Identifier: MIT */
/* What the files of x86-64 share. */
#ifndef KC_X86_64_H
#define KC_X86_64_H

/* The register files by their index in kc_arch_files, which is the order of pushing. */
enum kc_x86_file {
	KC_X86_SREGS, /* first: the modes, which the kernel checks much of the rest against */
	KC_X86_REGS,
	KC_X86_XCRS, /* before the area whose layout they allow */
	KC_X86_XSAVE,
	KC_X86_DEBUGREGS,
	KC_X86_MP_STATE,
	KC_X86_LAPIC,
	KC_X86_EVENTS, /* last: the others may queue or drop events */
	KC_X86_FILES,
};

#endif
