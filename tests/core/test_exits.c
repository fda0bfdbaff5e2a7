// SPDX-License-Identifier: MIT
/* What the exits do, and how each error among them that can be provoked comes out. */
#include "exits.h"
#include "guest.h"

static struct guest guest;
static struct recorder recorder;

static struct kvm_regs regs_of(struct kc_vcpu *vcpu)
{
	struct kvm_regs *regs;
	struct kvm_regs copy;

	check_ok(kc_vcpu_claim(vcpu, &err));
	regs = kc_context_read(vcpu, KC_X86_REGS, &err);
	check(regs);
	copy = *regs;
	kc_vcpu_release(vcpu);
	return copy;
}

/* Another VM goes on, whatever happened to the first. */
static void check_others_run(void)
{
	struct guest other = make_guest();
	struct kc_vcpu *vcpu = make_vcpu(&other);

	put_code(&other, CODE, 0xf4);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	kc_vcpu_put(vcpu);
	free_guest(&other);
}

static void test_io(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 4, &recorder);

	check(range);
	memset(&recorder, 0, sizeof(recorder));
	recorder.answer = 0x1234abcd;
	put_code(&guest, CODE, 0xb0, 0x42, 0xe6, 0x10, /* mov al, 0x42; out 0x10, al */
		 0xe5, 0x12, 0x66, 0xe5, 0x10, /* in ax, 0x12; in eax, 0x10 */
		 0xe7, 0x11, 0x66, 0xe7, 0x10, 0xf4); /* out 0x11, ax; out 0x10, eax; hlt */
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(recorder.count == 5);
	check(recorder.noted[0].is_write && recorder.noted[0].value == 0x42 &&
	      recorder.noted[0].size == 1);
	check(!recorder.noted[1].is_write && recorder.noted[1].offset == 2 &&
	      recorder.noted[1].size == 2);
	check(!recorder.noted[2].is_write && recorder.noted[2].size == 4);
	check(recorder.noted[3].value == 0xabcd && recorder.noted[3].offset == 1);
	check(recorder.noted[4].value == 0x1234abcd);
	check(kc_stat_read(&vcpu->stats, KC_STAT_io) == 5 &&
	      kc_stat_read(&vcpu->stats, KC_STAT_halts) == 1);
	check(vcpu->exits.records[(vcpu->exits.total - 1) % KC_LAST_EXITS].reason == KVM_EXIT_HLT);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

static void test_strings(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_device device = recorder_device(&recorder);
	struct kc_range *range;
	size_t bytes = 0;

	memset(&recorder, 0, sizeof(recorder));
	device.string = true;
	range = kc_bus_map(guest.vm, KC_IO, 0x10, 1, &device, false, &err);
	check(range);
	/* xor ax, ax; mov ds, ax; mov si, 0x3000; mov cx, 300; mov dx, 0x10; cld; rep outsb; hlt */
	put_code(&guest, CODE, 0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0, 0x30, 0xb9, 0x2c, 1, 0xba, 0x10, 0,
		 0xfc, 0xf3, 0x6e, 0xf4);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	for (size_t i = 0; i < recorder.count; i++)
		bytes += recorder.noted[i].count * recorder.noted[i].size;
	check(bytes == 300 && recorder.count <= 300);
	/* mov di, 0x3000; mov cx, 7; mov dx, 0x10; rep insb; hlt, with es at 0 */
	recorder.answer = 0x99;
	memset(guest.ram + 0x3000, 1, 16);
	put_code(&guest, CODE, 0xbf, 0, 0x30, 0xb9, 7, 0, 0xba, 0x10, 0, 0xfc, 0xf3, 0x6c, 0xf4);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	set_start(vcpu, CODE);
	kc_vcpu_wakeup(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	for (size_t i = 0; i < 7; i++)
		check(guest.ram[0x3000 + i] == 0x99);
	check(guest.ram[0x3007] == 1);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

static int redirect(void *opaque, struct kc_vcpu *vcpu, uint64_t *address, uint32_t size,
		    bool is_write, struct kc_error *error)
{
	if (*address == MMIO + 0x10)
		*address = MMIO;
	return 0;
}

static void test_mmio(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range;

	memset(&recorder, 0, sizeof(recorder));
	range = map_recorder(&guest, KC_MMIO, MMIO, 8, &recorder);
	check(range);
	guest.vm->hooks.redirect = redirect;
	atomic_store(&guest.vm->hooks.has_redirect, true);
	recorder.answer = 0x8765;
	put_code(&guest, CODE, 0xa1, 2, 0, 0xa2, 0x10, 0,
		 0xf4); /* mov ax, [2]; mov [0x10], al; hlt */
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(recorder.count == 2 && recorder.noted[0].offset == 2 && recorder.noted[0].size == 2);
	check(recorder.noted[1].is_write && recorder.noted[1].offset == 0 &&
	      recorder.noted[1].value == 0x65);
	check(regs_of(vcpu).rax == 0x8765 && kc_stat_read(&vcpu->stats, KC_STAT_mmio) == 2);
	atomic_store(&guest.vm->hooks.has_redirect, false);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

/* V16: the error, a device that comes later, and the other policy. */
static void test_unassigned(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range;

	memset(&recorder, 0, sizeof(recorder));
	put_code(&guest, CODE, 0xe7, 0x80, 0xe4, 0x81, 0xa3, 4, 0, 0xf4); /* out, in, mov [4], ax */
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_UNASSIGNED);
	check(err.address == 0x80 && err.access.size == 2 && err.access.is_write &&
	      err.access.is_io);
	check(vcpu->status == KC_SERVICE && vcpu->stop_reason == KC_STOP_ERROR);
	range = map_recorder(&guest, KC_IO, 0x80, 1, &recorder);
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_UNASSIGNED);
	check(recorder.count == 1 && err.address == 0x81 && !err.access.is_write);
	atomic_store(&guest.vm->unassigned_ones, true);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check((regs_of(vcpu).rax & 0xff) == 0xff);
	check(kc_stat_read(&vcpu->stats, KC_STAT_unassigned) == 4);
	atomic_store(&guest.vm->unassigned_ones, false);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

/* A device's error comes out of the run; the access is over, the guest goes on behind it. */
static void test_device_error(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);

	memset(&recorder, 0, sizeof(recorder));
	recorder.fails = KC_ERR_STATE;
	recorder.answer = 0x33;
	put_code(&guest, CODE, 0xe4, 0x10, 0xf4);
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_STATE);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && recorder.count == 1);
	check((regs_of(vcpu).rax & 0xff) == 0x33);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

static void expect_guest_error(struct kc_vcpu *vcpu, uint32_t reason)
{
	int failed = run_for(vcpu, 2000 * PS_PER_MS, NULL);

	check(failed == -1);
	if (err.kind != KC_ERR_GUEST || vcpu->run->exit_reason != reason)
		fprintf(stderr, "%s, exit %s\n", err.message, kc_exit_name(vcpu->run->exit_reason));
	check(err.kind == KC_ERR_GUEST && vcpu->run->exit_reason == reason);
	check(strstr(err.message, vcpu->name) && strstr(err.message, "pc "));
	check(vcpu->stop_reason == KC_STOP_ERROR);
	regs_of(vcpu);
	check_others_run();
}

/* Flat protected mode, without descriptor tables: the first exception is the last. */
static void set_protected(struct kc_vcpu *vcpu)
{
	struct kvm_segment data = {
		.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1
	};
	struct kvm_sregs *sregs;

	check_ok(kc_vcpu_claim(vcpu, &err));
	sregs = kc_context_write(vcpu, KC_X86_SREGS, &err);
	check(sregs);
	sregs->cr0 |= 1;
	sregs->ds = sregs->es = sregs->ss = sregs->fs = sregs->gs = data;
	data.selector = 8;
	data.type = 11;
	sregs->cs = data;
	sregs->idt.base = sregs->idt.limit = 0;
	kc_vcpu_release(vcpu);
}

static void test_triple_fault(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);

	set_protected(vcpu);
	put_code(&guest, CODE, 0x0f, 0x0b); /* ud2 */
	expect_guest_error(vcpu, KVM_EXIT_SHUTDOWN);
	kc_vcpu_put(vcpu);
}

static void test_unmapped_fetch(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);

	put_code(&guest, CODE, 0xea, 0, 0, 0, 0x40); /* jmp 0x4000:0 */
	expect_guest_error(vcpu, KVM_EXIT_INTERNAL_ERROR);
	check(vcpu->run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION);
	kc_vcpu_put(vcpu);
}

/* One that the hardware, or KVM in its place, refuses to enter. */
static void test_bad_state(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kvm_sregs *sregs;

	check_ok(kc_vcpu_claim(vcpu, &err));
	sregs = kc_context_write(vcpu, KC_X86_SREGS, &err);
	sregs->efer |= 1 << 10; /* long mode active, with neither paging nor long mode enabled */
	kc_vcpu_release(vcpu);
	check(run_for(vcpu, 100 * PS_PER_MS, NULL) == -1);
	check(err.kind == KC_ERR_OS || err.kind == KC_ERR_GUEST);
	check_others_run();
	kc_vcpu_put(vcpu);
}

/* An exit reason of the user's own: it takes the place of what would be done. */
static int serviced;
static bool service_fails;

static int service(void *opaque, uint64_t *latency, struct kc_error *error)
{
	serviced++;
	*latency = 5000;
	return service_fails ? kc_fail(error, KC_ERR_CALLBACK, "as it should") : 0;
}

static void test_exit_hook(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	uint64_t passed;

	vcpu->hooks.exit = service;
	atomic_store(&vcpu->exit_mask, 1ULL << KVM_EXIT_HLT | 1ULL << KVM_EXIT_IO);
	put_code(&guest, CODE, 0xf4, 0xe6, 0x10, 0xf4, 0xeb, 0xfe);
	check_ok(run_for(vcpu, PS_PER_MS, &passed));
	check(serviced == 3 && passed >= PS_PER_MS && vcpu->stop_reason == KC_STOP_TICKS);
	service_fails = true;
	set_start(vcpu, CODE);
	check(run_for(vcpu, KC_NEVER, NULL) == -1 && err.kind == KC_ERR_CALLBACK && serviced == 4);
	kc_vcpu_put(vcpu);
}

/* Breakpoints and single steps of the user's come back to him. */
static void test_debug(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };

	put_code(&guest, CODE, 0x40, 0x40, 0xf4, 0x40, 0xf4);
	check_ok(kc_vcpu_claim(vcpu, &err));
	check_ok(kc_vcpu_set_debug(vcpu, &debug, &err));
	kc_vcpu_release(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_EXIT && regs_of(vcpu).rip == CODE + 1);
	check(vcpu->run->exit_reason == KVM_EXIT_DEBUG);
	check(run_to_stop(vcpu) == KC_STOP_EXIT && regs_of(vcpu).rip == CODE + 2);
	check(run_to_stop(vcpu) == KC_STOP_IDLE); /* the halt is one */
	check(regs_of(vcpu).rip == CODE + 3 && kc_stat_read(&vcpu->stats, KC_STAT_halts) == 1);
	check_ok(kc_vcpu_claim(vcpu, &err));
	debug.control = 0;
	check_ok(kc_vcpu_set_debug(vcpu, &debug, &err));
	kc_vcpu_release(vcpu);
	kc_vcpu_wakeup(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && regs_of(vcpu).rip == CODE + 5);
	kc_vcpu_put(vcpu);
}

int main(void)
{
	guest = make_guest();
	test_io();
	test_strings();
	test_mmio();
	test_unassigned();
	test_device_error();
	test_triple_fault();
	test_unmapped_fetch();
	test_bad_state();
	test_exit_hook();
	test_debug();
	free_guest(&guest);
	return 0;
}
