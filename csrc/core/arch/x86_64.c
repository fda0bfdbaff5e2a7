// SPDX-License-Identifier: MIT
#include "x86_64.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "arch.h"
#include "cleanup.h"
#include "vcpu.h"
#include "vm.h"

const char kc_arch_name[] = "x86_64";
const char kc_arch_no_device[] = "load the kernel module (modprobe kvm_intel or kvm_amd), enable "
				 "virtualization in the firmware";
const unsigned int kc_arch_regs = KC_X86_REGS;

unsigned long kc_arch_vm_type(int kvm_fd, unsigned long type)
{
	return type;
}

/* ---- CPUID ---- */

#define CPUID_MAX 256

static struct kvm_cpuid2 *new_table(size_t entries, struct kc_error *err)
{
	struct kvm_cpuid2 *table =
		calloc(1, sizeof(*table) + entries * sizeof(struct kvm_cpuid_entry2));

	if (!table) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	table->nent = (uint32_t)entries;
	return table;
}

/* Asked once a device: it takes the kernel long (270 us on the slowest host seen). */
const struct kvm_cpuid2 *kc_x86_supported_cpuid(struct kc_kvm *kvm, struct kc_error *err)
{
	kc_auto_free struct kvm_cpuid2 *table = NULL;
	int fd = kc_kvm_device(kvm, err);

	if (fd < 0)
		return NULL;
	kc_hold(&kvm->lock);
	if (kvm->supported_cpuid)
		return kvm->supported_cpuid;
	table = new_table(CPUID_MAX, err);
	if (!table)
		return NULL;
	if (ioctl(fd, KVM_GET_SUPPORTED_CPUID, table)) {
		kc_fail_os(err, "KVM_GET_SUPPORTED_CPUID");
		return NULL;
	}
	kvm->supported_cpuid = kc_move(table);
	return kvm->supported_cpuid;
}

/* Leaves that tell the local APIC's id (Intel SDM vol. 2, CPUID: 01H, 0BH, 1FH). */
static void set_apic_id(struct kvm_cpuid2 *table, unsigned int id)
{
	for (uint32_t i = 0; i < table->nent; i++) {
		struct kvm_cpuid_entry2 *entry = &table->entries[i];

		if (entry->function == 1)
			entry->ebx = (entry->ebx & 0x00ffffff) | id << 24;
		else if (entry->function == 0xb || entry->function == 0x1f)
			entry->edx = id;
	}
}

int kc_arch_vcpu_start(struct kc_vcpu *vcpu, struct kc_error *err)
{
	kc_auto_free struct kvm_cpuid2 *table = NULL;
	const struct kvm_cpuid2 *supported;

	if (!vcpu->cpuid_supported)
		return 0;
	supported = kc_x86_supported_cpuid(vcpu->vm->kvm, err);
	if (!supported)
		return -1;
	table = new_table(supported->nent, err);
	if (!table)
		return -1;
	memcpy(table->entries, supported->entries, supported->nent * sizeof(*table->entries));
	set_apic_id(table, vcpu->id);
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, table))
		return kc_fail_os(err, "KVM_SET_CPUID2");
	return 0;
}

/*
 * Before Linux 6.3 KVM does not tell how many entries there are, and refuses a table that is too small for them: the
 * smallest that it takes has as many.
 */
static int get_cpuid(struct kc_vcpu *vcpu, struct kvm_cpuid2 *table)
{
	uint32_t low = 0, high = CPUID_MAX;

	if (ioctl(vcpu->fd, KVM_GET_CPUID2, table))
		return -1;
	if (table->nent < CPUID_MAX)
		return 0;
	while (low < high) {
		table->nent = (low + high) / 2;
		if (!ioctl(vcpu->fd, KVM_GET_CPUID2, table))
			high = (low + high) / 2;
		else if (errno == E2BIG)
			low = (low + high) / 2 + 1;
		else
			return -1;
	}
	table->nent = high;
	return 0;
}

struct kc_cpuid_entry *kc_arch_get_cpuid(struct kc_vcpu *vcpu, size_t *count, struct kc_error *err)
{
	kc_auto_free struct kvm_cpuid2 *table = new_table(CPUID_MAX, err);
	struct kc_cpuid_entry *entries;

	if (!table || kc_context_flush(vcpu, err))
		return NULL;
	if (get_cpuid(vcpu, table)) {
		kc_fail_os(err, "KVM_GET_CPUID2");
		return NULL;
	}
	entries = calloc(table->nent + 1, sizeof(*entries));
	if (!entries) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	*count = table->nent;
	for (uint32_t i = 0; i < table->nent; i++) {
		const struct kvm_cpuid_entry2 *from = &table->entries[i];

		entries[i] =
			(struct kc_cpuid_entry){ { from->function, from->index, from->flags,
						   from->eax, from->ebx, from->ecx, from->edx } };
	}
	return entries;
}

int kc_arch_set_cpuid(struct kc_vcpu *vcpu, const struct kc_cpuid_entry *entries, size_t count,
		      struct kc_error *err)
{
	kc_auto_free struct kvm_cpuid2 *table = NULL;

	if (count > CPUID_MAX)
		return kc_fail(err, KC_ERR_VALUE, "%zu CPUID entries: KVM takes %d", count,
			       CPUID_MAX);
	table = new_table(count, err);
	if (!table || kc_context_flush(vcpu, err))
		return -1;
	for (size_t i = 0; i < count; i++) {
		const uint32_t *from = entries[i].word;

		table->entries[i] = (struct kvm_cpuid_entry2){
			.function = from[0],
			.index = from[1],
			.flags = from[2],
			.eax = from[3],
			.ebx = from[4],
			.ecx = from[5],
			.edx = from[6],
		};
	}
	if (ioctl(vcpu->fd, KVM_SET_CPUID2, table)) {
		if (errno == EINVAL && vcpu->entered)
			return kc_fail(
				err, KC_ERR_STATE,
				"KVM_SET_CPUID2: the kernel refuses to change the CPUID table "
				"after the guest ran");
		return kc_fail_os(err, "KVM_SET_CPUID2");
	}
	kc_context_invalidate(vcpu);
	return 0;
}

/* ---- MSRs ---- */

struct one_msr {
	struct kvm_msrs header;
	struct kvm_msr_entry entry;
};

static int msr_call(struct kc_vcpu *vcpu, unsigned long request, const char *verb,
		    struct one_msr *msr, struct kc_error *err)
{
	int done;

	if (kc_context_flush(vcpu, err))
		return -1;
	done = ioctl(vcpu->fd, request, msr);
	if (done == 1)
		return 0;
	if (done == 0)
		errno = EINVAL;
	kc_fail(err, KC_ERR_OS, "the kernel refuses to %s MSR %#x: %s", verb, msr->entry.index,
		done ? strerror(errno) : "it does not know it, or not that value");
	err->os_errno = errno;
	return -1;
}

int kc_arch_get_msr(struct kc_vcpu *vcpu, uint32_t index, uint64_t *value, struct kc_error *err)
{
	struct one_msr msr = { .header.nmsrs = 1, .entry.index = index };

	if (msr_call(vcpu, KVM_GET_MSRS, "read", &msr, err))
		return -1;
	*value = msr.entry.data;
	return 0;
}

int kc_arch_set_msr(struct kc_vcpu *vcpu, uint32_t index, uint64_t value, struct kc_error *err)
{
	struct one_msr msr = { .header.nmsrs = 1, .entry = { .index = index, .data = value } };

	if (msr_call(vcpu, KVM_SET_MSRS, "write", &msr, err))
		return -1;
	kc_context_invalidate(vcpu);
	return 0;
}

uint32_t *kc_arch_msr_list(struct kc_vm *vm, size_t *count, struct kc_error *err)
{
	kc_auto_free struct kvm_msr_list *list = calloc(1, sizeof(*list));
	int fd = kc_kvm_device(vm->kvm, err);
	uint32_t *indices;

	if (fd < 0)
		return NULL;
	/* With no room it fails and says how much it needs. */
	if (list && ioctl(fd, KVM_GET_MSR_INDEX_LIST, list) && errno != E2BIG) {
		kc_fail_os(err, "KVM_GET_MSR_INDEX_LIST");
		return NULL;
	}
	if (list) {
		uint32_t room = list->nmsrs;

		free(list);
		list = calloc(1, sizeof(*list) + room * sizeof(list->indices[0]));
		if (list)
			list->nmsrs = room;
	}
	if (!list) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	if (ioctl(fd, KVM_GET_MSR_INDEX_LIST, list)) {
		kc_fail_os(err, "KVM_GET_MSR_INDEX_LIST");
		return NULL;
	}
	indices = calloc(list->nmsrs + 1, sizeof(*indices));
	if (!indices) {
		kc_fail(err, KC_ERR_MEMORY, "out of memory");
		return NULL;
	}
	*count = list->nmsrs;
	memcpy(indices, list->indices, list->nmsrs * sizeof(*indices));
	return indices;
}

/* ---- running ---- */

uint64_t kc_arch_pc(struct kc_vcpu *vcpu)
{
	struct kc_error ignored;
	const struct kvm_regs *regs = kc_context_read(vcpu, KC_X86_REGS, &ignored);

	return regs ? regs->rip : 0;
}

/* The highest vector goes first, as with a local APIC (Intel SDM vol. 3, 11.8.3.1). */
static int take_vector(struct kc_vcpu *vcpu)
{
	for (int word = 3; word >= 0; word--) {
		uint64_t bits = atomic_load(&vcpu->interrupts[word]);

		if (bits) {
			int bit = 63 - __builtin_clzll(bits);

			atomic_fetch_and(&vcpu->interrupts[word], ~(1ULL << bit));
			return word * 64 + bit;
		}
	}
	return -1;
}

static bool any_vector(struct kc_vcpu *vcpu)
{
	for (int word = 0; word < 4; word++)
		if (atomic_load(&vcpu->interrupts[word]))
			return true;
	return false;
}

static int deliver_nmi(struct kc_vcpu *vcpu, struct kc_error *err)
{
	/*
	 * The processor holds two at most: one that is being delivered and one that waits. The request goes first:
	 * one that comes now is another.
	 */
	atomic_fetch_and(&vcpu->requests, ~KC_REQUEST_NMI);
	if (ioctl(vcpu->fd, KVM_NMI, 0))
		return kc_fail_os(err, "KVM_NMI");
	atomic_store(&vcpu->nmis, 0);
	kc_stat_add(&vcpu->stats, KC_STAT_interrupts, 1);
	kc_context_invalidate(vcpu);
	kc_trace(vcpu, KvmInt, "NMI");
	return 0;
}

int kc_arch_deliver_interrupts(struct kc_vcpu *vcpu, struct kc_error *err)
{
	unsigned int requests = atomic_load(&vcpu->requests);
	struct kvm_interrupt interrupt;
	int vector;

	if (!(requests & (KC_REQUEST_NMI | KC_REQUEST_INTERRUPT)))
		return 0;
	if (kc_context_flush(vcpu, err))
		return -1;
	if ((requests & KC_REQUEST_NMI) && deliver_nmi(vcpu, err))
		return -1;
	if (!(requests & KC_REQUEST_INTERRUPT))
		return 0;
	/*
	 * The kernel says at each exit whether the guest can take one; else it says when. Its word is as old as the
	 * exit: the flags may have been written since.
	 */
	if (vcpu->run->ready_for_interrupt_injection && vcpu->run->if_flag &&
	    kc_arch_takes_interrupts(vcpu)) {
		atomic_fetch_and(&vcpu->requests, ~KC_REQUEST_INTERRUPT);
		vector = take_vector(vcpu);
		if (vector >= 0) {
			interrupt.irq = (uint32_t)vector;
			if (ioctl(vcpu->fd, KVM_INTERRUPT, &interrupt)) {
				kc_fail_os(err, "KVM_INTERRUPT");
				atomic_fetch_or(&vcpu->interrupts[vector / 64],
						1ULL << (vector % 64));
				atomic_fetch_or(&vcpu->requests, KC_REQUEST_INTERRUPT);
				return -1;
			}
			vcpu->run->ready_for_interrupt_injection = 0;
			kc_stat_add(&vcpu->stats, KC_STAT_interrupts, 1);
			kc_context_invalidate(vcpu);
			kc_trace(vcpu, KvmInt, "interrupt vector %#x", (unsigned int)vector);
		}
		if (any_vector(vcpu))
			atomic_fetch_or(&vcpu->requests, KC_REQUEST_INTERRUPT);
	}
	vcpu->run->request_interrupt_window = any_vector(vcpu);
	return 0;
}

bool kc_arch_takes_interrupts(struct kc_vcpu *vcpu)
{
	struct kc_error ignored;
	const struct kvm_regs *regs = kc_context_read(vcpu, KC_X86_REGS, &ignored);

	return regs &&
	       regs->rflags & 1 << 9; /* IF; HLT with it clear waits for an NMI (SDM vol. 2) */
}

int kc_arch_has_pending_event(struct kc_vcpu *vcpu, struct kc_error *err)
{
	const struct kvm_vcpu_events *events = kc_context_read(vcpu, KC_X86_EVENTS, err);

	if (!events)
		return -1;
	return events->exception.injected || events->interrupt.injected || events->nmi.injected ||
	       events->nmi.pending;
}

bool kc_arch_is_single_step(struct kc_vcpu *vcpu)
{
	/* DR6 (Intel SDM vol. 3, 18.2.3): BS, and none of the four breakpoints */
	uint64_t dr6 = vcpu->run->debug.arch.dr6;

	return vcpu->run->debug.arch.exception == 1 && (dr6 & 1 << 14) && !(dr6 & 0xf);
}

/* A byte of code, `at` being counted as the program counter is. */
static bool read_code(struct kc_vcpu *vcpu, uint64_t at, uint8_t *byte)
{
	struct kc_error ignored;
	const struct kvm_sregs *sregs = kc_context_read(vcpu, KC_X86_SREGS, &ignored);
	uint64_t physical;

	if (!sregs)
		return false;
	if (!sregs->cs.l)
		at = (uint32_t)(at + sregs->cs.base);
	physical = at;
	if ((sregs->cr0 & 1u << 31) && kc_arch_translate(vcpu, at, &physical, &ignored))
		return false;
	return !kc_memory_read(vcpu->vm, physical, byte, 1, &ignored);
}

bool kc_arch_halt_at(struct kc_vcpu *vcpu, uint64_t pc)
{
	uint8_t byte;

	return read_code(vcpu, pc, &byte) && byte == 0xf4;
}

bool kc_arch_lost_halt(struct kc_vcpu *vcpu, uint64_t from)
{
	struct kc_error ignored;
	const struct kvm_sregs *sregs;

	/* With the kernel's interrupt controller the halt is a state that the kernel keeps. */
	if (kc_arch_pc(vcpu) != from + 1 || vcpu->vm->irqchip)
		return false;
	sregs = kc_context_read(vcpu, KC_X86_SREGS, &ignored);
	/* Where the processor has privileges, a user may not halt. */
	if (!sregs || ((sregs->cr0 & 1) && sregs->ss.dpl))
		return false;
	return kc_arch_halt_at(vcpu, from);
}

bool kc_arch_at_repeat(struct kc_vcpu *vcpu)
{
	uint64_t pc = kc_arch_pc(vcpu);

	/* Prefixes (Intel SDM vol. 2, 2.1.1): groups 2 to 4 may stand before the repeat. */
	for (uint64_t i = 0; i < 4; i++) {
		uint8_t byte;

		if (!read_code(vcpu, pc + i, &byte))
			return false;
		if (byte == 0xf2 || byte == 0xf3)
			return true;
		if (!memchr("\x26\x2e\x36\x3e\x64\x65\x66\x67", byte, 8))
			return false;
	}
	return false;
}

size_t kc_arch_split_offset(struct kc_vcpu *vcpu)
{
	struct kc_error ignored;
	const struct kvm_cpuid2 *table = kc_x86_supported_cpuid(vcpu->vm->kvm, &ignored);

	/* Leaf 0DH, sub-leaf 2: size and place of the upper halves of ymm in the area. */
	for (uint32_t i = 0; table && i < table->nent; i++) {
		const struct kvm_cpuid_entry2 *entry = &table->entries[i];

		if (entry->function == 0xd && entry->index == 2 && entry->eax >= 256 &&
		    entry->ebx + 256 <= vcpu->context.size[KC_X86_XSAVE])
			return entry->ebx;
	}
	return 0;
}

int kc_arch_translate(struct kc_vcpu *vcpu, uint64_t address, uint64_t *physical,
		      struct kc_error *err)
{
	struct kvm_translation translation = { .linear_address = address };

	if (kc_context_flush(vcpu, err))
		return -1;
	if (ioctl(vcpu->fd, KVM_TRANSLATE, &translation))
		return kc_fail_os(err, "KVM_TRANSLATE");
	if (!translation.valid)
		return 1;
	*physical = translation.physical_address;
	return 0;
}
