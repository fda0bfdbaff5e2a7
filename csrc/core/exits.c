// SPDX-License-Identifier: MIT
#include "exits.h"

#include <inttypes.h>
#include <string.h>

#include "arch/arch.h"
#include "cleanup.h"
#include "vcpu.h"
#include "vm.h"

const char *kc_exit_name(uint32_t reason)
{
	static const char *const names[] = {
		"UNKNOWN",
		"EXCEPTION",
		"IO",
		"HYPERCALL",
		"DEBUG",
		"HLT",
		"MMIO",
		"IRQ_WINDOW_OPEN",
		"SHUTDOWN",
		"FAIL_ENTRY",
		"INTR",
		"SET_TPR",
		"TPR_ACCESS",
		"S390_SIEIC",
		"S390_RESET",
		"DCR",
		"NMI",
		"INTERNAL_ERROR",
		"OSI",
		"PAPR_HCALL",
		"S390_UCONTROL",
		"WATCHDOG",
		"S390_TSCH",
		"EPR",
		"SYSTEM_EVENT",
		"S390_STSI",
		"IOAPIC_EOI",
		"HYPERV",
		"ARM_NISV",
		"X86_RDMSR",
		"X86_WRMSR",
		"DIRTY_RING_FULL",
		"AP_RESET_HOLD",
		"X86_BUS_LOCK",
		"XEN",
		"RISCV_SBI",
		"RISCV_CSR",
		"NOTIFY",
		"LOONGARCH_IOCSR",
		"MEMORY_FAULT",
		"TDX",
	};

	return reason < sizeof(names) / sizeof(names[0]) ? names[reason] : "?";
}

static uint8_t *io_data(struct kc_vcpu *vcpu)
{
	return (uint8_t *)vcpu->run + vcpu->run->io.data_offset;
}

static kc_cold void note_others(struct kvm_run *run, struct kc_exit_record *record)
{
	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		record->address = run->mmio.phys_addr;
		record->size = run->mmio.is_write ? (int32_t)run->mmio.len
						  : -(int32_t)run->mmio.len;
		if (run->mmio.is_write)
			record->data = kc_bytes_value(run->mmio.data, run->mmio.len);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		record->data = run->internal.suberror;
		break;
	case KVM_EXIT_FAIL_ENTRY:
		record->data = run->fail_entry.hardware_entry_failure_reason;
		break;
	case KVM_EXIT_UNKNOWN:
		record->data = run->hw.hardware_exit_reason;
		break;
	case KVM_EXIT_EXCEPTION:
		record->data = run->ex.exception;
		break;
	case KVM_EXIT_SYSTEM_EVENT:
		record->data = run->system_event.type;
		break;
	case KVM_EXIT_HYPERCALL:
		record->data = run->hypercall.nr;
		break;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		record->address = run->msr.index;
		record->data = run->msr.data;
		break;
	}
}

kc_exit_path void kc_exit_note(struct kc_vcpu *vcpu, uint64_t tick)
{
	struct kvm_run *run = vcpu->run;
	struct kc_exit_record *record = kc_exit_ring_next(&vcpu->exits);

	vcpu->record = record;
	record->tick = tick;
	record->reason = run->exit_reason;
	record->latency = record->address = record->data = 0;
	record->size = 0;
	if (__builtin_expect(run->exit_reason == KVM_EXIT_IO, 1)) {
		record->address = run->io.port;
		record->size = -run->io.size;
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			record->size = run->io.size;
			record->data = kc_bytes_value(io_data(vcpu), run->io.size);
		}
	} else if (run->exit_reason != KVM_EXIT_INTR) {
		note_others(run, record);
	}
	kc_trace(vcpu, KvmRun, "exit %s address %#" PRIx64 " size %d data %#" PRIx64,
		 kc_exit_name(record->reason), record->address, record->size, record->data);
}

/* Nobody is at the address (V16). 0: the access is over, -1: an error, the exit stays to be serviced. */
static kc_cold int unassigned(struct kc_vcpu *vcpu, enum kc_space space, uint64_t address,
			      struct kc_access *access, struct kc_error *err)
{
	kc_stat_add(&vcpu->stats, KC_STAT_unassigned, 1);
	if (atomic_load_explicit(&vcpu->vm->unassigned_ones, memory_order_relaxed)) {
		if (!access->is_write)
			memset(access->data, 0xff, (size_t)access->size * access->count);
		return 0;
	}
	kc_fail(err, KC_ERR_UNASSIGNED,
		"the guest %s %u byte%s at %s %#" PRIx64 " (pc %#" PRIx64
		"), and nobody is there: map a device or memory there and go on, or set "
		"VM.unassigned to \"ones\"",
		access->is_write ? "writes" : "reads", access->size, access->size == 1 ? "" : "s",
		space == KC_IO ? "port" : "address", address, kc_arch_pc(vcpu));
	err->address = address;
	err->access.pc = kc_arch_pc(vcpu);
	err->access.size = access->size;
	err->access.is_write = access->is_write;
	err->access.is_io = space == KC_IO;
	return -1;
}

kc_hot void trace_access(struct kc_vcpu *vcpu, enum kc_space space, uint64_t address,
			 const struct kc_access *access)
{
	kc_trace(vcpu, KvmIO, "%s %#" PRIx64 " %s %u x %u data %#" PRIx64,
		 space == KC_IO ? "port" : "address", address, access->is_write ? "write" : "read",
		 access->count, access->size, kc_bytes_value(access->data, access->size));
}

/*
 * One access by the bus. What a device reports as an error comes out of the run, but the access is over: going
 * on goes on behind it. An unassigned one is tried again.
 */
kc_hot int access_bus(struct kc_vcpu *vcpu, enum kc_space space, uint64_t address,
		      struct kc_access *access, uint64_t *latency, struct kc_error *err)
{
	int result;

	if (!access->is_write)
		memset(access->data, 0xff, (size_t)access->size * access->count);
	result = kc_bus_access(vcpu->vm, space, address, access, err);
	if (__builtin_expect(result > 0, 0)) {
		if (unassigned(vcpu, space, address, access, err))
			return -1;
		result = 0;
	}
	vcpu->status = KC_COMPLETION;
	*latency += access->latency;
	if (!access->is_write)
		vcpu->record->data = kc_bytes_value(access->data, access->size);
	trace_access(vcpu, space, address, access);
	return result;
}

kc_hot int io_access(struct kc_vcpu *vcpu, struct kc_access *access)
{
	struct kvm_run *run = vcpu->run;

	*access = (struct kc_access){
		.vcpu = vcpu,
		.data = io_data(vcpu),
		.size = run->io.size,
		.count = run->io.count,
		.is_write = run->io.direction == KVM_EXIT_IO_OUT,
	};
	return __builtin_expect(run->io.data_offset <= vcpu->run_size &&
					(uint64_t)access->size * access->count <=
						vcpu->run_size - run->io.data_offset,
				1)
		       ? 0
		       : -1;
}

static int service_io(struct kc_vcpu *vcpu, uint64_t *latency, struct kc_error *err)
{
	struct kc_access access;

	if (io_access(vcpu, &access))
		return kc_fail(err, KC_ERR_GUEST,
			       "the kernel's I/O data lie outside the run structure");
	return access_bus(vcpu, KC_IO, vcpu->run->io.port, &access, latency, err);
}

static int service_mmio(struct kc_vcpu *vcpu, uint64_t *latency, struct kc_error *err)
{
	struct kvm_run *run = vcpu->run;
	struct kc_vm_hooks *hooks = &vcpu->vm->hooks;
	uint64_t address = run->mmio.phys_addr;
	struct kc_access access = {
		.vcpu = vcpu,
		.data = run->mmio.data,
		.size = run->mmio.len,
		.count = 1,
		.is_write = run->mmio.is_write,
	};

	if (access.size > sizeof(run->mmio.data))
		return kc_fail(err, KC_ERR_GUEST, "an MMIO access of %u bytes", access.size);
	if (__builtin_expect(atomic_load_explicit(&hooks->has_redirect, memory_order_relaxed), 0) &&
	    hooks->redirect(hooks->opaque, vcpu, &address, access.size, access.is_write, err))
		return -1;
	return access_bus(vcpu, KC_MMIO, address, &access, latency, err);
}

int kc_exit_drain_ring(struct kc_vcpu *vcpu, uint64_t *latency, struct kc_error *err)
{
	struct kvm_coalesced_mmio_ring *ring = vcpu->ring;
	struct kc_vm *vm = vcpu->vm;
	int failed = 0;

	/* The ring is the VM's: whoever comes first delivers, one at a time, so that the order stays (V15). */
	kc_lock_take(&vm->device_lock);
	while (!failed && ring->first != __atomic_load_n(&ring->last, __ATOMIC_ACQUIRE)) {
		struct kvm_coalesced_mmio entry = ring->coalesced_mmio[ring->first];
		struct kc_access access = {
			.vcpu = vcpu,
			.size = entry.len,
			.count = 1,
			.is_write = true,
			.data = entry.data,
		};
		enum kc_space space = entry.pio ? KC_IO : KC_MMIO;

		/* Taken before it is delivered: a device that runs another vCPU comes here again. */
		__atomic_store_n(&ring->first, (ring->first + 1) % vcpu->ring_capacity,
				 __ATOMIC_RELEASE);
		if (entry.len <= sizeof(entry.data)) {
			failed = kc_bus_access(vm, space, entry.phys_addr, &access, err);
			kc_stat_add(&vcpu->stats, KC_STAT_coalesced_mmio, 1);
			*latency += access.latency;
			/* The range went while its writes were on their way: they are dropped with it. */
			if (failed > 0)
				failed = 0;
		}
	}
	kc_lock_release(&vm->device_lock);
	return failed;
}

static kc_cold int guest_error(struct kc_vcpu *vcpu, struct kc_error *err)
{
	struct kvm_run *run = vcpu->run;
	uint64_t pc = kc_arch_pc(vcpu);

	switch (run->exit_reason) {
	case KVM_EXIT_UNKNOWN:
		return kc_fail(
			err, KC_ERR_GUEST,
			"%s: an exit that the kernel does not know, hardware exit reason %#llx, "
			"pc %#" PRIx64,
			vcpu->name, run->hw.hardware_exit_reason, pc);
	case KVM_EXIT_EXCEPTION:
		return kc_fail(err, KC_ERR_GUEST,
			       "%s: unhandled exception %u, error code %#x, pc %#" PRIx64,
			       vcpu->name, run->ex.exception, run->ex.error_code, pc);
	case KVM_EXIT_SHUTDOWN:
		return kc_fail(
			err, KC_ERR_GUEST,
			"%s: shutdown, a triple fault: an exception came up while the double "
			"fault's handler was called, pc %#" PRIx64,
			vcpu->name, pc);
	case KVM_EXIT_FAIL_ENTRY:
		return kc_fail(
			err, KC_ERR_GUEST,
			"%s: the hardware refuses to enter the guest, reason %#llx, pc %#" PRIx64,
			vcpu->name, run->fail_entry.hardware_entry_failure_reason, pc);
	case KVM_EXIT_INTERNAL_ERROR: {
		static const char *const texts[] = {
			[0] = "an unknown error",
			[KVM_INTERNAL_ERROR_EMULATION] = "an instruction that KVM cannot emulate",
			[KVM_INTERNAL_ERROR_SIMUL_EX] = "simultaneous exceptions",
			[KVM_INTERNAL_ERROR_DELIVERY_EV] = "an exit while an event was delivered",
			[KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON] = "an unexpected exit reason",
		};
		uint32_t sub = run->internal.suberror;

		return kc_fail(err, KC_ERR_GUEST, "%s: KVM internal error %u, %s, pc %#" PRIx64,
			       vcpu->name, sub,
			       texts[sub < sizeof(texts) / sizeof(texts[0]) ? sub : 0], pc);
	}
	case KVM_EXIT_HYPERCALL:
		return kc_fail(
			err, KC_ERR_GUEST,
			"%s: hypercall %#llx, pc %#" PRIx64
			", and nobody handles it: set_exit_handler(ExitReason.HYPERCALL, ...)",
			vcpu->name, run->hypercall.nr, pc);
	default:
		return kc_fail(err, KC_ERR_GUEST,
			       "%s: exit %s (%u), pc %#" PRIx64
			       ", and nobody handles it: set_exit_handler(%u, ...)",
			       vcpu->name, kc_exit_name(run->exit_reason), run->exit_reason, pc,
			       run->exit_reason);
	}
}

/* Whether the user services this exit himself. */
kc_hot bool is_hooked(struct kc_vcpu *vcpu, uint32_t reason)
{
	uint64_t mask = atomic_load_explicit(&vcpu->exit_mask, memory_order_relaxed);

	return __builtin_expect(mask && reason < 64 && (mask >> reason & 1), 0);
}

kc_exit_path bool kc_exit_service_briefly(struct kc_vcpu *vcpu)
{
	struct kvm_run *run = vcpu->run;
	struct kc_access access;

	if (run->exit_reason != KVM_EXIT_IO || run->io.direction != KVM_EXIT_IO_OUT ||
	    is_hooked(vcpu, KVM_EXIT_IO) || __builtin_expect(kc_exit_ring_filled(vcpu), 0) ||
	    io_access(vcpu, &access) ||
	    !kc_bus_write_briefly(vcpu->vm, KC_IO, run->io.port, &access))
		return false;
	kc_stat_add(&vcpu->stats, KC_STAT_io, 1);
	vcpu->status = KC_COMPLETION;
	trace_access(vcpu, KC_IO, run->io.port, &access);
	return true;
}

static void count(struct kc_vcpu *vcpu, uint32_t reason)
{
	switch (reason) {
	case KVM_EXIT_IO:
		kc_stat_add(&vcpu->stats, KC_STAT_io, 1);
		break;
	case KVM_EXIT_MMIO:
		kc_stat_add(&vcpu->stats, KC_STAT_mmio, 1);
		break;
	case KVM_EXIT_HLT:
		kc_stat_add(&vcpu->stats, KC_STAT_halts, 1);
		break;
	case KVM_EXIT_HYPERCALL:
		kc_stat_add(&vcpu->stats, KC_STAT_hypercalls, 1);
		break;
	}
}

kc_exit_path int kc_exit_service(struct kc_vcpu *vcpu, uint64_t *latency, struct kc_error *err)
{
	struct kvm_run *run = vcpu->run;
	uint32_t reason = run->exit_reason;
	int failed = 0;

	*latency = 0;
	/* What came before the exit, where an error of a device kept it from being delivered (V15). */
	if (kc_exit_ring_filled(vcpu) && kc_exit_drain_ring(vcpu, latency, err))
		return -1;
	vcpu->status = KC_RUNNING;
	count(vcpu, reason);
	if (is_hooked(vcpu, reason)) {
		/* Whatever the kernel waits for is delivered by the next entry. */
		vcpu->status = KC_COMPLETION;
		failed = vcpu->hooks.exit(vcpu->hooks.opaque, latency, err);
		vcpu->record->latency = *latency;
		return failed;
	}
	switch (reason) {
	case KVM_EXIT_IO:
		vcpu->status = KC_SERVICE;
		failed = service_io(vcpu, latency, err);
		break;
	case KVM_EXIT_MMIO:
		vcpu->status = KC_SERVICE;
		failed = service_mmio(vcpu, latency, err);
		break;
	case KVM_EXIT_HLT:
		kc_vcpu_suspend(vcpu);
		break;
	case KVM_EXIT_INTR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
		break;
	case KVM_EXIT_DEBUG:
	case KVM_EXIT_SYSTEM_EVENT:
	case KVM_EXIT_DIRTY_RING_FULL:
		/* What it means, only the user knows: the run returns, and goes on when it is called again. */
		vcpu->exit_unhandled = true;
		break;
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR:
		vcpu->exit_unhandled = true;
		vcpu->status = KC_COMPLETION;
		break;
	case KVM_EXIT_HYPERCALL:
		vcpu->status = KC_COMPLETION;
		failed = guest_error(vcpu, err);
		break;
	default:
		failed = guest_error(vcpu, err);
	}
	vcpu->record->latency = *latency;
	return failed;
}
