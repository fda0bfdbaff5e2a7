// SPDX-License-Identifier: MIT
/* V23: instruction stops are exact, on a vCPU and on the sum of a VM's; steps are. */
#include "guest.h"

#include <linux/perf_event.h>

static struct guest guest;
static struct recorder recorder;

static uint64_t rip_of(struct kc_vcpu *vcpu)
{
	uint64_t rip;

	check_ok(kc_vcpu_claim(vcpu, &err));
	rip = kc_arch_pc(vcpu);
	kc_vcpu_release(vcpu);
	return rip;
}

static uint16_t ax_of(struct kc_vcpu *vcpu)
{
	struct kvm_regs *regs;
	uint16_t ax;

	check_ok(kc_vcpu_claim(vcpu, &err));
	regs = kc_context_read(vcpu, KC_X86_REGS, &err);
	check(regs);
	ax = (uint16_t)regs->rax;
	kc_vcpu_release(vcpu);
	return ax;
}

static uint64_t step(struct kc_vcpu *vcpu, uint64_t n)
{
	uint64_t done;

	check_ok(kc_vcpu_claim(vcpu, &err));
	check_ok(kc_vcpu_step(vcpu, n, &done, &err));
	kc_vcpu_release(vcpu);
	return done;
}

static void stop_after(struct kc_vcpu *vcpu, uint64_t n)
{
	check_ok(kc_vcpu_claim(vcpu, &err));
	check_ok(kc_vcpu_schedule_inst_stop(vcpu, n, &err));
	kc_vcpu_release(vcpu);
}

static void test_steps(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);

	memset(&recorder, 0, sizeof(recorder));
	/* inc ax; out 0x10, al; inc ax; hlt; inc ax; mov cx, 3; rep stosb; jmp itself */
	put_code(&guest, CODE, 0x40, 0xe6, 0x10, 0x40, 0xf4, 0x40, 0xb9, 3, 0, 0xf3, 0xaa, 0xeb,
		 0xfe);
	check(step(vcpu, 1) == 1 && rip_of(vcpu) == CODE + 1);
	check(step(vcpu, 1) == 1 && rip_of(vcpu) == CODE + 3 && recorder.count == 1);
	/* It stops at the halt, which is an instruction, as on hardware. */
	check(step(vcpu, 10) == 2 && rip_of(vcpu) == CODE + 5 && vcpu->stop_reason == KC_STOP_IDLE);
	check(kc_stat_read(&vcpu->stats, KC_STAT_halts) == 1);
	check(step(vcpu, 5) == 0 && vcpu->stop_reason == KC_STOP_IDLE);
	kc_vcpu_wakeup(vcpu);
	check(step(vcpu, 3) == 3); /* the string instruction is one */
	check(rip_of(vcpu) == CODE + 11 && vcpu->stop_reason == KC_STOP_INSTS);
	check(step(vcpu, 7) == 7 && rip_of(vcpu) == CODE + 11);
	check(atomic_load(&vcpu->insts) == 14 && vcpu->insts_known);
	check(kc_stat_read(&vcpu->stats, KC_STAT_insts) == 14 &&
	      atomic_load(&guest.vm->insts) == 14);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

/* The halt that was stepped over is not reported again when the guest runs on. */
static void test_halt_once(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);

	put_code(&guest, CODE, 0xf4, 0x40, 0x40, 0x40, 0xf4, 0x40, 0xf4);
	check(step(vcpu, 1) == 1 && rip_of(vcpu) == CODE + 1);
	kc_vcpu_wakeup(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && rip_of(vcpu) == CODE + 5 && ax_of(vcpu) == 3);
	/* Nor is one that is real taken for it. */
	set_start(vcpu, CODE);
	kc_vcpu_wakeup(vcpu);
	check(step(vcpu, 1) == 1);
	set_start(vcpu, CODE + 4);
	kc_vcpu_wakeup(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && rip_of(vcpu) == CODE + 5);
	kc_vcpu_wakeup(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && rip_of(vcpu) == CODE + 7);
	kc_vcpu_put(vcpu);
}

/* inc ax; out 0x10, al; jmp back: three instructions a round, at random counts */
static void test_stops(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	static const uint64_t at[] = { CODE, CODE + 1, CODE + 3 };
	unsigned int seed = 1;
	uint64_t total = 0;

	memset(&recorder, 0, sizeof(recorder));
	put_code(&guest, CODE, 0x40, 0xe6, 0x10, 0xeb, 0xfb);
	for (int i = 0; i < 300; i++) {
		uint64_t n = 1 + (uint64_t)rand_r(&seed) % 40;

		stop_after(vcpu, n);
		check(run_to_stop(vcpu) == KC_STOP_INSTS);
		total += n;
		check(atomic_load(&vcpu->insts) == total && rip_of(vcpu) == at[total % 3]);
		check(ax_of(vcpu) == (uint16_t)((total + 2) / 3) &&
		      recorder.count == (total + 1) / 3);
	}
	check(kc_vcpu_schedule_inst_stop(vcpu, 0, &err) == -1 && err.kind == KC_ERR_VALUE);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

/* ---- the system's stop, with two vCPUs on two threads ---- */

struct runner {
	struct kc_vcpu *vcpu;
	enum kc_stop reason;
	atomic_bool done;
};

static atomic_bool over;

static void *run_one(void *arg)
{
	struct runner *runner = arg;

	runner->reason = run_to_stop(runner->vcpu);
	atomic_store(&runner->done, true);
	return NULL;
}

static void *kicks(void *arg)
{
	struct runner *runners = arg;

	while (!atomic_load(&over)) {
		kc_kick(runners[0].vcpu);
		kc_kick(runners[1].vcpu);
		usleep(50);
	}
	return NULL;
}

static void test_system_stop(void)
{
	struct runner runners[2] = { { .vcpu = make_vcpu(&guest) }, { .vcpu = make_vcpu(&guest) } };
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	uint64_t total = atomic_load(&guest.vm->insts);
	unsigned int seed = 5, both = 0;
	pthread_t threads[2], kicker;

	put_code(&guest, CODE, 0x40, 0xe6, 0x10, 0xeb, 0xfb);
	put_code(&guest, 0x2000, 0x40, 0x40, 0xeb, 0xfc);
	set_start(runners[1].vcpu, 0x2000);
	check(!pthread_create(&kicker, NULL, kicks, runners));
	for (int i = 0; i < 150; i++) {
		uint64_t n = 1 + (uint64_t)rand_r(&seed) % 60;

		check_ok(kc_vm_schedule_inst_stop(guest.vm, n, &err));
		for (int j = 0; j < 2; j++) {
			atomic_store(&runners[j].done, false);
			check(!pthread_create(&threads[j], NULL, run_one, &runners[j]));
		}
		/* One that begins when the other has reached the stop runs freely, and is not counted. */
		while (!atomic_load(&runners[0].done) && !atomic_load(&runners[1].done))
			usleep(20);
		for (int j = 0; j < 2; j++) {
			while (!atomic_load(&runners[j].done)) {
				usleep(1000);
				kc_vcpu_stop(runners[j].vcpu);
			}
			check(!pthread_join(threads[j], NULL));
		}
		check(runners[0].reason == KC_STOP_INSTS || runners[1].reason == KC_STOP_INSTS);
		both += runners[0].reason == runners[1].reason;
		total += n;
		check(atomic_load(&guest.vm->insts) == total);
	}
	check(both > 10);
	atomic_store(&over, true);
	check(!pthread_join(kicker, NULL));
	check(kc_vm_schedule_inst_stop(guest.vm, 0, &err) == -1 && err.kind == KC_ERR_VALUE);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	for (int i = 0; i < 2; i++)
		kc_vcpu_put(runners[i].vcpu);
}

/* The sampling stop, on an event that every host has: its counts are the clock's, not instructions. */
static void test_sampled(void)
{
	struct kc_vcpu_config config = {
		.time_source = KC_TIME_PERF,
		.has_perf_event = true,
		.perf_type = PERF_TYPE_SOFTWARE,
		.perf_config = PERF_COUNT_SW_TASK_CLOCK,
	};
	struct kc_vcpu *vcpu = make_vcpu_with(&guest, config);

	if (!vcpu) {
		check(err.kind == KC_ERR_UNSUPPORTED);
		return;
	}
	put_code(&guest, CODE, 0xeb, 0xfe);
	for (int i = 1; i <= 20; i++) {
		uint64_t n = (uint64_t)i * 200000, before = atomic_load(&vcpu->insts);

		stop_after(vcpu, n);
		check(run_to_stop(vcpu) == KC_STOP_INSTS);
		check(atomic_load(&vcpu->insts) - before >= n);
	}
	check_ok(run_for(vcpu, PS_PER_MS, NULL));
	check(vcpu->stop_reason == KC_STOP_TICKS && vcpu->counters.period == 0);
	kc_vcpu_put(vcpu);
}

int main(void)
{
	guest = make_guest();
	test_steps();
	test_halt_once();
	test_stops();
	test_system_stop();
	test_sampled();
	free_guest(&guest);
	return 0;
}
