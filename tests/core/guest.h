/* SPDX-License-Identifier: MIT */
/* Small real-mode guests for the tests that need a KVM: 64 KiB of memory, code at 0x1000. */
#ifndef GUEST_H
#define GUEST_H

#include <string.h>
#include <time.h>
#include <unistd.h>

#include "arch/arch.h"
#include "arch/x86_64.h"
#include "check.h"
#include "cleanup.h"
#include "hostclock.h"
#include "vcpu.h"
#include "vm.h"

#define CODE 0x1000
#define RAM_SIZE 0x10000
#define MMIO 0x20000 /* the guests' ds is 0x2000: their offset 0 is here */
#define PS_PER_MS 1000000000ULL

static struct kc_trace trace;
static _Thread_local struct kc_error err;

#define check_ok(result)                                                                           \
	do {                                                                                       \
		if (result) {                                                                      \
			fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #result,            \
				err.message);                                                      \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

struct guest {
	struct kc_kvm *kvm;
	struct kc_vm *vm;
	struct kc_slot *slot;
	uint8_t *ram;
};

static inline struct guest make_guest(void)
{
	struct guest guest = { 0 };
	struct kc_mapping *mapping;

	if (kc_kvm_open("/dev/kvm", &guest.kvm, &err))
		skip_test(err.message);
	guest.vm = kc_vm_create(guest.kvm, 0, 1000000000000ULL, &trace, &err);
	check(guest.vm);
	mapping = kc_mapping_anonymous(RAM_SIZE, &err);
	check(mapping);
	guest.ram = mapping->host;
	guest.slot = kc_slot_add(guest.vm, 0, mapping, false, false, &err);
	check(guest.slot);
	kc_mapping_put(mapping);
	return guest;
}

static inline void free_guest(struct guest *guest)
{
	kc_slot_put(guest->slot);
	kc_vm_close(guest->vm);
	kc_vm_put(guest->vm);
	kc_kvm_put(guest->kvm);
}

/* Claimed for the calling thread while its registers are set, not afterwards. */
static inline void set_start(struct kc_vcpu *vcpu, uint16_t ip)
{
	struct kvm_sregs *sregs;
	struct kvm_regs *regs;

	check_ok(kc_vcpu_claim(vcpu, &err));
	sregs = kc_context_write(vcpu, KC_X86_SREGS, &err);
	check(sregs);
	sregs->cs.base = sregs->cs.selector = 0;
	sregs->ds.base = MMIO;
	sregs->ds.selector = MMIO >> 4;
	regs = kc_context_write(vcpu, KC_X86_REGS, &err);
	check(regs);
	memset(regs, 0, sizeof(*regs));
	regs->rip = ip;
	regs->rflags = 2;
	regs->rsp = 0x8000;
	kc_vcpu_release(vcpu);
}

static inline struct kc_vcpu *make_vcpu_with(struct guest *guest, struct kc_vcpu_config config)
{
	struct kc_vcpu *vcpu;

	config.cpuid_supported = true;
	if (!config.host_factor)
		config.host_factor = 1;
	vcpu = kc_vcpu_create(guest->vm, -1, &config, &err);
	if (!vcpu)
		return NULL;
	check_ok(kc_vcpu_claim(vcpu, &err));
	check_ok(kc_vcpu_start(vcpu, &err));
	kc_vcpu_release(vcpu);
	set_start(vcpu, CODE);
	return vcpu;
}

static inline struct kc_vcpu *make_vcpu(struct guest *guest)
{
	struct kc_vcpu *vcpu = make_vcpu_with(guest, (struct kc_vcpu_config){ 0 });

	check(vcpu);
	return vcpu;
}

#define put_code(guest, at, ...)                                                                   \
	memcpy((guest)->ram + (at), (const uint8_t[]){ __VA_ARGS__ },                              \
	       sizeof((const uint8_t[]){ __VA_ARGS__ }))

/* A run as the binding makes one: claimed while it lasts. */
static inline int run_for(struct kc_vcpu *vcpu, uint64_t ticks, uint64_t *passed)
{
	uint64_t ignored;
	int failed;

	if (kc_vcpu_claim(vcpu, &err))
		return -1;
	failed = kc_vcpu_run(vcpu, ticks, passed ? passed : &ignored, &err);
	kc_vcpu_release(vcpu);
	return failed;
}

static inline enum kc_stop run_to_stop(struct kc_vcpu *vcpu)
{
	check_ok(run_for(vcpu, KC_NEVER, NULL));
	return vcpu->stop_reason;
}

static inline uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

/* A device that keeps what was done to it, and may do something about it. */
struct noted {
	uint64_t offset, value;
	uint32_t size, count;
	bool is_write;
};

struct recorder {
	struct noted noted[4096];
	size_t count;
	int released;
	uint64_t answer;
	enum kc_error_kind fails; /* with this, once */
	void (*then)(struct recorder *recorder, struct kc_access *access);
	void *opaque;
};

static inline int recorder_access(void *opaque, struct kc_access *access, struct kc_error *error)
{
	struct recorder *recorder = opaque;

	recorder->noted[recorder->count++ % 4096] = (struct noted){
		.offset = access->offset,
		.value = kc_access_value(access),
		.size = access->size,
		.count = access->count,
		.is_write = access->is_write,
	};
	if (!access->is_write)
		kc_access_set_value(access, recorder->answer);
	if (recorder->then)
		recorder->then(recorder, access);
	if (recorder->fails) {
		enum kc_error_kind kind = recorder->fails;

		recorder->fails = KC_OK;
		return kc_fail(error, kind, "as it should");
	}
	return 0;
}

static inline void recorder_release(void *opaque)
{
	((struct recorder *)opaque)->released++;
}

static inline struct kc_device recorder_device(struct recorder *recorder)
{
	return (struct kc_device){ .access = recorder_access,
				   .release = recorder_release,
				   .opaque = recorder };
}

static inline struct kc_range *map_recorder(struct guest *guest, enum kc_space space, uint64_t base,
					    uint64_t size, struct recorder *recorder)
{
	struct kc_device device = recorder_device(recorder);

	return kc_bus_map(guest->vm, space, base, size, &device, false, &err);
}

#endif
