// SPDX-License-Identifier: MIT
/* V12: two copies of the registers; none is ever stale and dirty. */
#include "guest.h"

#include <errno.h>

static struct guest guest;

/* Trace lines tell what crossed the border. */
static unsigned int pulls, pushes;

static void emit(void *opaque, enum kc_trace_flag flag, uint64_t tick, const char *cpu,
		 const char *message)
{
	if (!strncmp(message, "pulled", 6))
		pulls++;
	if (!strncmp(message, "pushed", 6))
		pushes++;
}

static void both_never(const struct kc_vcpu *vcpu)
{
	check(!(vcpu->context.stale & vcpu->context.dirty));
	check(!((vcpu->context.stale | vcpu->context.dirty) & ~vcpu->context.present));
}

static void test_pull_once(struct kc_vcpu *vcpu)
{
	struct kvm_sregs *sregs;
	struct kvm_regs *regs;

	put_code(&guest, CODE, 0x40, 0xf4, 0x40, 0xf4); /* inc ax; hlt; inc ax; hlt */
	set_start(vcpu, CODE);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	both_never(vcpu);
	check_ok(kc_vcpu_claim(vcpu, &err));
	pulls = pushes = 0;
	for (int i = 0; i < 5; i++) {
		regs = kc_context_read(vcpu, KC_X86_REGS, &err);
		check(regs && regs->rax == 1 && regs->rip == CODE + 2);
		check((sregs = kc_context_read(vcpu, KC_X86_SREGS, &err)));
		check(kc_context_read(vcpu, KC_X86_DEBUGREGS, &err));
		both_never(vcpu);
	}
	check(pulls <=
	      2); /* the general registers come with the exit, where the kernel can do that */
	/* A clean copy is not pushed. */
	check_ok(kc_context_flush(vcpu, &err));
	check(pushes == 0);

	/* What is written is not pulled again, and is there after the next entry. */
	regs = kc_context_write(vcpu, KC_X86_REGS, &err);
	regs->rax = 41;
	both_never(vcpu);
	kc_context_invalidate(vcpu);
	both_never(vcpu);
	regs = kc_context_read(vcpu, KC_X86_REGS, &err);
	check(regs->rax == 41);
	kc_vcpu_activate(vcpu);
	kc_vcpu_release(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	both_never(vcpu);
	check(!vcpu->context.dirty);
	regs = kc_context_read(vcpu, KC_X86_REGS, &err);
	check(regs->rax == 42);
	check_ok(kc_context_pull(vcpu, &err));
	check(!vcpu->context.stale);
	kc_vcpu_release(vcpu);
}

static void test_missing(struct kc_vcpu *vcpu)
{
	check_ok(kc_vcpu_claim(vcpu, &err));
	check(!kc_context_read(vcpu, KC_X86_LAPIC, &err) && err.kind == KC_ERR_UNSUPPORTED);
	check(!kc_context_write(vcpu, KC_X86_LAPIC, &err) && err.kind == KC_ERR_UNSUPPORTED);
	kc_vcpu_release(vcpu);
}

/* What the kernel refuses is named, stays to be corrected, and the rest is not lost. */
static void test_refused(struct kc_vcpu *vcpu)
{
	struct kvm_sregs *sregs, good;
	struct kvm_regs *regs;

	put_code(&guest, CODE, 0x40, 0xf4);
	set_start(vcpu, CODE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	kc_vcpu_activate(vcpu);
	regs = kc_context_write(vcpu, KC_X86_REGS, &err);
	regs->rax = 6;
	sregs = kc_context_write(vcpu, KC_X86_SREGS, &err);
	good = *sregs;
	sregs->cr0 |= 1u << 31; /* paging without protection */
	kc_vcpu_release(vcpu);
	check(run_for(vcpu, KC_NEVER, NULL) == -1);
	check(err.kind == KC_ERR_OS && err.os_errno == EINVAL && strstr(err.message, "sregs"));
	both_never(vcpu);
	check(vcpu->stop_reason == KC_STOP_ERROR);
	check_ok(kc_vcpu_claim(vcpu, &err));
	sregs = kc_context_write(vcpu, KC_X86_SREGS, &err);
	check(sregs->cr0 & 1u << 31);
	*sregs = good;
	kc_vcpu_release(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	regs = kc_context_read(vcpu, KC_X86_REGS, &err);
	check(regs->rax == 7);
	kc_vcpu_release(vcpu);
}

static void test_random(struct kc_vcpu *vcpu)
{
	uint64_t expected[4] = { 0 }, ignored;
	unsigned int seed = 7;

	put_code(&guest, CODE, 0xeb, 0xfe);
	set_start(vcpu, CODE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	kc_vcpu_activate(vcpu);
	for (int i = 0; i < 5000; i++) {
		struct kvm_regs *regs;
		unsigned int file = (unsigned int)rand_r(&seed) % KC_X86_EVENTS;

		switch (rand_r(&seed) % 8) {
		case 0:
			if (file != KC_X86_LAPIC)
				check(kc_context_read(vcpu, file, &err));
			break;
		case 1: /* written, and not changed */
			if (file != KC_X86_LAPIC)
				check(kc_context_write(vcpu, file, &err));
			break;
		case 2:
			check_ok(kc_context_flush(vcpu, &err));
			check(!vcpu->context.dirty);
			break;
		case 3:
			kc_context_invalidate(vcpu);
			break;
		case 4:
			check_ok(kc_vcpu_enter(vcpu, 0, &ignored, &err));
			break;
		case 5:
			check_ok(kc_context_pull(vcpu, &err));
			break;
		default:
			regs = kc_context_write(vcpu, KC_X86_REGS, &err);
			check(regs && regs->rbx == expected[0] && regs->rsi == expected[1]);
			regs->rbx = expected[0] = (uint64_t)rand_r(&seed);
			regs->rsi = expected[1] = (uint64_t)rand_r(&seed) << 32;
		}
		both_never(vcpu);
	}
	kc_vcpu_release(vcpu);
}

/* After a step and a write to a register, the guest is not stepped any more. */
static void test_debug_off(struct kc_vcpu *vcpu)
{
	struct kvm_regs *regs;
	uint64_t done;

	put_code(&guest, CODE, 0x40, 0x40, 0x40, 0x40, 0xf4);
	set_start(vcpu, CODE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	kc_vcpu_activate(vcpu);
	check_ok(kc_vcpu_step(vcpu, 1, &done, &err));
	check(done == 1);
	regs = kc_context_write(vcpu, KC_X86_REGS, &err);
	check(regs->rax == 1 && regs->rip == CODE + 1);
	regs->rax = 10;
	kc_vcpu_release(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	regs = kc_context_read(vcpu, KC_X86_REGS, &err);
	check(regs->rax == 13);
	kc_vcpu_release(vcpu);
}

int main(void)
{
	struct kc_vcpu *vcpu;

	guest = make_guest();
	trace.emit = emit;
	atomic_store(&trace.mask, 1u << KC_TRACE_KvmContext);
	vcpu = make_vcpu(&guest);
	test_pull_once(vcpu);
	test_missing(vcpu);
	test_refused(vcpu);
	test_random(vcpu);
	test_debug_off(vcpu);
	kc_vcpu_put(vcpu);
	free_guest(&guest);
	return 0;
}
