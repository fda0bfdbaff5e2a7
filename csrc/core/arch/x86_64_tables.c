// SPDX-License-Identifier: MIT
/* The registers of x86-64 as tables: how the kernel hands them out, and what they are called. */
#include <stddef.h>
#include <stdint.h>

#include "compat.h"
#include "context.h"
#include "fields.h"
#include "arch.h"
#include "x86_64.h"

const struct kc_file kc_arch_files[] = {
	[KC_X86_SREGS] = {
		.name = "sregs",
		.get = KVM_GET_SREGS,
		.set = KVM_SET_SREGS,
		.size = sizeof(struct kvm_sregs),
		.sync = KVM_SYNC_X86_SREGS,
		.sync_offset = offsetof(struct kvm_run, s.regs.sregs),
	},
	[KC_X86_REGS] = {
		.name = "regs",
		.get = KVM_GET_REGS,
		.set = KVM_SET_REGS,
		.size = sizeof(struct kvm_regs),
		.sync = KVM_SYNC_X86_REGS,
		.sync_offset = offsetof(struct kvm_run, s.regs.regs),
	},
	[KC_X86_XCRS] = {
		.name = "xcrs",
		.get = KVM_GET_XCRS,
		.set = KVM_SET_XCRS,
		.size = sizeof(struct kvm_xcrs),
		.cap = KVM_CAP_XCRS,
	},
	[KC_X86_XSAVE] = {
		.name = "xsave",
		.get = KVM_GET_XSAVE,
		.set = KVM_SET_XSAVE,
		.size = sizeof(struct kvm_xsave),
		.cap = KVM_CAP_XSAVE,
		.size_cap = KVM_CAP_XSAVE2,
		.get_large = KVM_GET_XSAVE2,
	},
	[KC_X86_DEBUGREGS] = {
		.name = "debugregs",
		.get = KVM_GET_DEBUGREGS,
		.set = KVM_SET_DEBUGREGS,
		.size = sizeof(struct kvm_debugregs),
		.cap = KVM_CAP_DEBUGREGS,
	},
	[KC_X86_MP_STATE] = {
		.name = "mp_state",
		.get = KVM_GET_MP_STATE,
		.set = KVM_SET_MP_STATE,
		.size = sizeof(struct kvm_mp_state),
		.cap = KVM_CAP_MP_STATE,
	},
	[KC_X86_LAPIC] = {
		.name = "lapic",
		.get = KVM_GET_LAPIC,
		.set = KVM_SET_LAPIC,
		.size = sizeof(struct kvm_lapic_state),
		.cap = KVM_CAP_IRQCHIP,
		.needs_irqchip = true,
	},
	[KC_X86_EVENTS] = {
		.name = "events",
		.get = KVM_GET_VCPU_EVENTS,
		.set = KVM_SET_VCPU_EVENTS,
		.size = sizeof(struct kvm_vcpu_events),
		.cap = KVM_CAP_VCPU_EVENTS,
		.sync = KVM_SYNC_X86_EVENTS,
		.sync_offset = offsetof(struct kvm_run, s.regs.events),
	},
};
const unsigned int kc_arch_file_count = KC_X86_FILES;
_Static_assert(KC_X86_FILES <= KC_FILES_MAX, "more register files than a context holds");

/* clang-format off */
static const struct kc_field regs_fields[] = {
#define X(name) KC_FIELD(struct kvm_regs, name),
	X(rax) X(rbx) X(rcx) X(rdx) X(rsi) X(rdi) X(rsp) X(rbp)
	X(r8) X(r9) X(r10) X(r11) X(r12) X(r13) X(r14) X(r15)
	X(rip) X(rflags)
#undef X
	KC_FIELDS_END,
};

static const struct kc_field segment_fields[] = {
#define X(name) KC_FIELD(struct kvm_segment, name),
	X(base) X(limit) X(selector) X(type)
	X(present) X(dpl) X(db) X(s) X(l) X(g) X(avl) X(unusable)
#undef X
	KC_FIELDS_END,
};

static const struct kc_field dtable_fields[] = {
	KC_FIELD(struct kvm_dtable, base),
	KC_FIELD(struct kvm_dtable, limit),
	KC_FIELDS_END,
};

static const struct kc_field sregs_fields[] = {
#define SEGMENT(name) KC_FIELD_NESTED(struct kvm_sregs, name, segment_fields, "Segment"),
#define DTABLE(name) KC_FIELD_NESTED(struct kvm_sregs, name, dtable_fields, "DTable"),
#define X(name) KC_FIELD(struct kvm_sregs, name),
	SEGMENT(cs) SEGMENT(ds) SEGMENT(es) SEGMENT(fs) SEGMENT(gs) SEGMENT(ss)
	SEGMENT(tr) SEGMENT(ldt)
	DTABLE(gdt) DTABLE(idt)
	X(cr0) X(cr2) X(cr3) X(cr4) X(cr8) X(efer) X(apic_base)
#undef X
#undef DTABLE
#undef SEGMENT
	KC_FIELDS_END,
};

/* The legacy region of the XSAVE area and its header: Intel SDM vol. 1, table 10-2 and 13.4.2. */
enum {
	XSAVE_ST = 32,
	XSAVE_XMM = 160,
	XSAVE_XSTATE_BV = 512,
	XSTATE_X87 = 1 << 0,
	XSTATE_SSE = 1 << 1,
	XSTATE_AVX = 1 << 2,
};

static const struct kc_field fpu_fields[] = {
#define X(name, offset, size) { name, KC_FIELD_UINT, offset, size, 0, NULL, NULL },
	X("fcw", 0, 2) X("fsw", 2, 2) X("ftw", 4, 1) X("fop", 6, 2) X("fip", 8, 8) X("fdp", 16, 8)
	X("mxcsr", 24, 4) X("mxcsr_mask", 28, 4)
#undef X
#define X(i) { "st" #i, KC_FIELD_WIDE, XSAVE_ST + 16 * (i), 10, 0, NULL, NULL },
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#undef X
#define ALL X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define X(i) { "xmm" #i, KC_FIELD_WIDE, XSAVE_XMM + 16 * (i), 16, 0, NULL, NULL },
	ALL
#undef X
#define X(i) { "ymm" #i, KC_FIELD_SPLIT, XSAVE_XMM + 16 * (i), 16, 16 * (i), NULL, NULL },
	ALL
#undef X
#undef ALL
	KC_FIELDS_END,
};

static const struct kc_field debugregs_fields[] = {
	KC_FIELD_AS("db0", struct kvm_debugregs, db[0]),
	KC_FIELD_AS("db1", struct kvm_debugregs, db[1]),
	KC_FIELD_AS("db2", struct kvm_debugregs, db[2]),
	KC_FIELD_AS("db3", struct kvm_debugregs, db[3]),
	KC_FIELD(struct kvm_debugregs, dr6),
	KC_FIELD(struct kvm_debugregs, dr7),
	KC_FIELD(struct kvm_debugregs, flags),
	KC_FIELDS_END,
};

static const struct kc_field events_fields[] = {
#define X(name, member) KC_FIELD_AS(#name, struct kvm_vcpu_events, member),
	X(exception_injected, exception.injected)
	X(exception_nr, exception.nr)
	X(exception_has_error_code, exception.has_error_code)
	X(exception_pending, exception.pending)
	X(exception_error_code, exception.error_code)
	X(interrupt_injected, interrupt.injected)
	X(interrupt_nr, interrupt.nr)
	X(interrupt_soft, interrupt.soft)
	X(interrupt_shadow, interrupt.shadow)
	X(nmi_injected, nmi.injected)
	X(nmi_pending, nmi.pending)
	X(nmi_masked, nmi.masked)
	X(sipi_vector, sipi_vector)
	X(flags, flags)
	X(smi_smm, smi.smm)
	X(smi_pending, smi.pending)
	X(smi_smm_inside_nmi, smi.smm_inside_nmi)
	X(smi_latched_init, smi.latched_init)
	/* Headers before Linux 6.0 have it as the first byte of what is reserved. */
	{ "triple_fault_pending", KC_FIELD_UINT, offsetof(struct kvm_vcpu_events, smi) + 4, 1, 0,
	  NULL, NULL },
	X(exception_has_payload, exception_has_payload)
	X(exception_payload, exception_payload)
#undef X
	KC_FIELDS_END,
};

static const struct kc_field xcrs_fields[] = {
	/* The kernel has no other, and hands it out first. */
	KC_FIELD_AS("xcr0", struct kvm_xcrs, xcrs[0].value),
	KC_FIELDS_END,
};
/* clang-format on */

const struct kc_register_file kc_arch_register_files[] = {
	{ "regs", "Regs", KC_X86_REGS, regs_fields, "General registers" },
	{ "sregs", "Sregs", KC_X86_SREGS, sregs_fields, "Segments and control registers" },
	{ "fpu", "Fpu", KC_X86_XSAVE, fpu_fields, "x87, SSE and AVX registers" },
	{ "debugregs", "DebugRegs", KC_X86_DEBUGREGS, debugregs_fields, "Debug registers" },
	{ "events", "VcpuEvents", KC_X86_EVENTS, events_fields, "Events in flight" },
	{ "xcrs", "Xcrs", KC_X86_XCRS, xcrs_fields, "Extended control registers" },
};
const unsigned int kc_arch_register_file_count =
	sizeof(kc_arch_register_files) / sizeof(kc_arch_register_files[0]);

void kc_arch_field_written(unsigned int file, void *data, const struct kc_field *field)
{
	if (file == KC_X86_XSAVE) {
		uint64_t *present = (uint64_t *)((uint8_t *)data + XSAVE_XSTATE_BV);

		/* A component whose bit is clear is loaded in its initial state, whatever is there. */
		if (field->kind == KC_FIELD_SPLIT)
			*present |= XSTATE_SSE | XSTATE_AVX;
		else if (field->offset >= XSAVE_XMM || field->offset == 24 || field->offset == 28)
			*present |= XSTATE_SSE;
		else
			*present |= XSTATE_X87;
	} else if (file == KC_X86_EVENTS) {
		struct kvm_vcpu_events *events = data;

		/* The kernel reports it as not valid, and takes it only when it is said to be. */
		if (field->offset == offsetof(struct kvm_vcpu_events, sipi_vector))
			events->flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
	} else if (file == KC_X86_XCRS) {
		struct kvm_xcrs *xcrs = data;

		if (!xcrs->nr_xcrs)
			xcrs->nr_xcrs = 1;
	}
}
