// SPDX-License-Identifier: MIT
/* Life and states of a vCPU: start, entries, half entries, steps, runs, idleness, events. */
#include "guest.h"

static struct guest guest;
static struct recorder recorder;

static void test_before_start(void)
{
	struct kc_vcpu_config config = { .host_factor = 1, .cpuid_supported = true };
	struct kc_vcpu *vcpu = kc_vcpu_create(guest.vm, -1, &config, &err);
	uint64_t passed;

	check(vcpu && vcpu->status == KC_IDLE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	check(kc_vcpu_run(vcpu, 1, &passed, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_enter(vcpu, 1, &passed, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_tick(vcpu, &passed, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_step(vcpu, 1, &passed, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_drain(vcpu, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_interrupt(vcpu, 32, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_nmi(vcpu, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(kc_vcpu_schedule_inst_stop(vcpu, 1, &err) == -1 && err.kind == KC_ERR_NOT_STARTED);
	check(!kc_kick(vcpu) && !kc_vcpu_stop(vcpu));
	check_ok(kc_vcpu_start(vcpu, &err));
	check(kc_vcpu_start(vcpu, &err) == -1 && err.kind == KC_ERR_STATE);
	check(vcpu->status == KC_RUNNING);
	kc_vcpu_release(vcpu);
	kc_vcpu_put(vcpu);
}

static int refuse_mode(void *opaque, struct kc_error *error)
{
	return kc_fail(error, KC_ERR_STATE, "a cache model stands in front of the memory");
}

static void test_memory_mode(void)
{
	struct kc_vcpu_config config = { .host_factor = 1 };
	struct kc_vcpu *vcpu = kc_vcpu_create(guest.vm, -1, &config, &err);

	check(vcpu);
	guest.vm->hooks.memory_mode = refuse_mode;
	atomic_store(&guest.vm->hooks.has_memory_mode, true);
	check_ok(kc_vcpu_claim(vcpu, &err));
	check(kc_vcpu_start(vcpu, &err) == -1 && err.kind == KC_ERR_STATE &&
	      strstr(err.message, "cache"));
	atomic_store(&guest.vm->hooks.has_memory_mode, false);
	check_ok(kc_vcpu_start(vcpu, &err));
	kc_vcpu_release(vcpu);
	kc_vcpu_put(vcpu);
}

/* The states of an access, step by step, and the half entry that delivers it. */
static void test_ticks(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	uint64_t delay;

	memset(&recorder, 0, sizeof(recorder));
	recorder.answer = 0x77;
	put_code(&guest, CODE, 0xe4, 0x10, 0xf4); /* in al, 0x10; hlt */
	check_ok(kc_vcpu_claim(vcpu, &err));
	while (vcpu->status == KC_RUNNING)
		check_ok(kc_vcpu_tick(vcpu, &delay, &err));
	check(vcpu->status == KC_SERVICE && vcpu->run->exit_reason == KVM_EXIT_IO &&
	      !recorder.count);
	check_ok(kc_vcpu_tick(vcpu, &delay, &err));
	check(vcpu->status == KC_COMPLETION && recorder.count == 1);
	check_ok(kc_vcpu_enter(vcpu, 0, &delay, &err));
	check(delay == vcpu->period && vcpu->status == KC_RUNNING);
	check(kc_stat_read(&vcpu->stats, KC_STAT_half_entries) == 1);
	check(((struct kvm_regs *)kc_context_read(vcpu, KC_X86_REGS, &err))->rax == 0x77);
	while (vcpu->status != KC_IDLE)
		check_ok(kc_vcpu_tick(vcpu, &delay, &err));
	check(vcpu->run->exit_reason == KVM_EXIT_HLT && !vcpu->active);
	check(kc_vcpu_tick(vcpu, &delay, &err) == -1 && err.kind == KC_ERR_STATE);
	kc_vcpu_suspend(vcpu); /* does nothing to an idle one */
	check(vcpu->status == KC_IDLE);
	/* Half entries cost one period each, time always moves. */
	for (int i = 0; i < 10; i++) {
		uint64_t before = vcpu->next_step;

		check_ok(kc_vcpu_enter(vcpu, 0, &delay, &err));
		check(delay == vcpu->period && vcpu->next_step > before);
	}
	kc_vcpu_release(vcpu);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

static void test_run_ticks(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	uint64_t passed, signals;

	put_code(&guest, CODE, 0xeb, 0xfe);
	for (int i = 0; i < 20; i++) {
		check_ok(run_for(vcpu, PS_PER_MS, &passed));
		check(vcpu->stop_reason == KC_STOP_TICKS && passed >= PS_PER_MS);
		check(vcpu->next_step % vcpu->period == 0);
	}
	signals = kc_stat_read(&vcpu->stats, KC_STAT_exit_signal);
	check(signals >= 20 && kc_stat_read(&vcpu->stats, KC_STAT_exits) >= signals);
	check(kc_queue_now(guest.vm->queue) == vcpu->next_step);
	kc_stats_reset(&vcpu->stats);
	check(kc_stat_read(&vcpu->stats, KC_STAT_exits) == 0);
	kc_vcpu_put(vcpu);
}

/* ---- events ---- */

struct ticker {
	struct kc_event event;
	struct kc_vcpu *vcpu;
	uint64_t again, late;
	int calls, wake_at;
};

static int tick_call(void *opaque, struct kc_error *error)
{
	struct ticker *ticker = opaque;
	struct kc_queue *queue = ticker->vcpu->queue;
	uint64_t late = kc_queue_now(queue) - ticker->event.when;

	if (late > ticker->late)
		ticker->late = late;
	ticker->calls++;
	if (ticker->calls == ticker->wake_at)
		kc_vcpu_wakeup(ticker->vcpu);
	return ticker->again ? kc_queue_schedule(queue, &ticker->event,
						 ticker->event.when + ticker->again, error)
			     : 0;
}

/* Halted, with events: time jumps from one to the next. */
static void test_idle_jumps(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct ticker ticker = { .event = { .call = tick_call, .opaque = &ticker },
				 .vcpu = vcpu,
				 .wake_at = 1000 };
	uint64_t start, passed, begin = now_ns();

	put_code(&guest, CODE, 0xf4, 0x40, 0xf4);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	start = kc_queue_now(vcpu->queue);
	ticker.again = 1000 * PS_PER_MS; /* a second */
	check_ok(kc_queue_schedule(vcpu->queue, &ticker.event, start + ticker.again, &err));
	check_ok(run_for(vcpu, 100000 * PS_PER_MS, &passed));
	check(vcpu->stop_reason == KC_STOP_TICKS && passed == 100000 * PS_PER_MS &&
	      ticker.calls == 100);
	check(ticker.late == 0 && now_ns() - begin < 10000000000);
	/* One of them wakes it; it halts again, and then nothing is left. */
	ticker.wake_at = 101;
	ticker.again = 0;
	check(run_to_stop(vcpu) == KC_STOP_IDLE && ticker.calls == 101);
	check_ok(kc_vcpu_claim(vcpu, &err));
	check(((struct kvm_regs *)kc_context_read(vcpu, KC_X86_REGS, &err))->rip == CODE + 3);
	kc_vcpu_release(vcpu);
	check(kc_stat_read(&vcpu->stats, KC_STAT_cycles) > 1000000);
	kc_vcpu_put(vcpu);
}

/* A spinning guest comes out for each event. */
static void test_periodic(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct ticker ticker = { .event = { .call = tick_call, .opaque = &ticker },
				 .vcpu = vcpu,
				 .again = PS_PER_MS };
	uint64_t passed;

	put_code(&guest, CODE, 0xeb, 0xfe);
	check_ok(kc_queue_schedule_after(vcpu->queue, &ticker.event, PS_PER_MS, &err));
	check_ok(run_for(vcpu, 50 * PS_PER_MS, &passed));
	check(ticker.calls >= 49 && ticker.calls <= (int)(passed / PS_PER_MS));
	kc_queue_cancel(vcpu->queue, &ticker.event);
	kc_vcpu_put(vcpu);
}

static atomic_int scheduled;
static struct ticker sooner;

static void *schedule_sooner(void *arg)
{
	usleep(20000);
	atomic_store(&scheduled, 1);
	check(!kc_queue_schedule_after(guest.vm->queue, &sooner.event, 1, &err));
	return NULL;
}

static int stop_call(void *opaque, struct kc_error *error)
{
	kc_vcpu_stop(((struct ticker *)opaque)->vcpu);
	return 0;
}

/* An event that another thread schedules shortens the entry in progress. */
static void test_sooner(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	pthread_t thread;

	put_code(&guest, CODE, 0xeb, 0xfe);
	sooner = (struct ticker){ .event = { .call = stop_call, .opaque = &sooner }, .vcpu = vcpu };
	check(!pthread_create(&thread, NULL, schedule_sooner, NULL));
	check(run_to_stop(vcpu) == KC_STOP_STOP && atomic_load(&scheduled));
	check(!pthread_join(thread, NULL));
	kc_vcpu_put(vcpu);
}

/* ---- interrupts ---- */

static void test_interrupts(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 4, &recorder);

	memset(&recorder, 0, sizeof(recorder));
	for (int i = 0; i < 256; i++)
		put_code(&guest, i * 4, 0, 0x30, 0, 0);
	put_code(&guest, 0x21 * 4, 0x10, 0x30, 0, 0);
	put_code(&guest, 2 * 4, 0x20, 0x30, 0, 0);
	put_code(&guest, 0x3000, 0xe6, 0x10, 0xcf); /* out 0x10, al; iret */
	put_code(&guest, 0x3010, 0xe6, 0x11, 0xcf);
	put_code(&guest, 0x3020, 0xe6, 0x12, 0xcf);
	put_code(&guest, CODE, 0xfa, 0x90, 0x90, 0xfb, 0x90, 0xf4, 0xeb,
		 0xfd); /* cli; nop; nop; sti; nop; hlt; back */
	check_ok(kc_vcpu_interrupt(vcpu, 0x20, &err));
	check_ok(kc_vcpu_interrupt(vcpu, 0x21, &err));
	check(kc_vcpu_interrupt(vcpu, 256, &err) == -1 && err.kind == KC_ERR_VALUE);
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	/* The higher vector first. */
	check(recorder.count == 2 && recorder.noted[0].offset == 1 &&
	      recorder.noted[1].offset == 0);
	check(kc_stat_read(&vcpu->stats, KC_STAT_interrupts) == 2);
	/* Each wakes the halted one. */
	check_ok(kc_vcpu_nmi(vcpu, &err));
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(recorder.count == 3 && recorder.noted[2].offset == 2);
	check_ok(kc_vcpu_interrupt(vcpu, 0x21, &err));
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(recorder.count == 4 && recorder.noted[3].offset == 1);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

/* Flags that were written after the exit count, not what the kernel said at the exit. */
static void test_flags_written(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 4, &recorder);
	struct kvm_regs *regs;

	memset(&recorder, 0, sizeof(recorder));
	put_code(&guest, CODE, 0xfb, 0x90, 0xf4, 0x90, 0xe6, 0x12, 0xfb, 0x90, 0xf4, 0xeb, 0xfd);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && vcpu->run->if_flag);
	check_ok(kc_vcpu_claim(vcpu, &err));
	regs = kc_context_write(vcpu, KC_X86_REGS, &err);
	check(regs && regs->rflags & 1 << 9);
	regs->rflags &= ~(1ULL << 9);
	kc_vcpu_activate(vcpu);
	kc_vcpu_release(vcpu);
	check_ok(kc_vcpu_interrupt(vcpu, 0x21, &err));
	check(run_to_stop(vcpu) == KC_STOP_IDLE);
	check(recorder.count == 2 && recorder.noted[0].offset == 2 &&
	      recorder.noted[1].offset == 1);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

/* Where a tick is longer than an entry lasts, time passes all the same. */
static void test_coarse_ticks(void)
{
	struct kc_queue *queue = kc_queue_create(10000, &err); /* 100 us each */
	struct kc_vcpu *vcpu = make_vcpu_with(&guest, (struct kc_vcpu_config){ .queue = queue });
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 4, &recorder);
	uint64_t passed, begin;

	check(queue && vcpu && vcpu->period == 1);
	put_code(&guest, CODE, 0xe6, 0x10, 0xeb, 0xfc); /* out 0x10, al; back */
	begin = now_ns();
	check_ok(run_for(vcpu, 500, &passed));
	check(vcpu->stop_reason == KC_STOP_TICKS && passed >= 500); /* a busy host is late */
	check(now_ns() - begin > 45000000);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
	kc_queue_put(queue);
}

/* ---- handlers that do what they may ---- */

static struct kc_vcpu *current;

static void act(struct recorder *unused, struct kc_access *access)
{
	uint64_t passed;

	switch (access->offset) {
	case 0:
		check(kc_vcpu_stop(current));
		break;
	case 1:
		check(kc_kick(current));
		break;
	case 2: /* nothing of this works here, and nothing is harmed */
		check(kc_vcpu_run(current, 1, &passed, &err) == -1 && err.kind == KC_ERR_STATE);
		check(kc_vcpu_enter(current, 0, &passed, &err) == -1 && err.kind == KC_ERR_STATE);
		check(kc_vcpu_tick(current, &passed, &err) == -1 && err.kind == KC_ERR_STATE);
		check(kc_vcpu_step(current, 3, &passed, &err) == -1 && err.kind == KC_ERR_STATE);
		break;
	case 3:
		kc_vcpu_suspend(current);
		break;
	}
}

static void test_handlers(void)
{
	struct kc_vcpu *vcpu = current = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 4, &recorder);
	uint64_t done;

	memset(&recorder, 0, sizeof(recorder));
	recorder.then = act;
	/* out 0x12; out 0x11; out 0x10; inc ax; out 0x13; inc ax; hlt */
	put_code(&guest, CODE, 0xe6, 0x12, 0xe6, 0x11, 0xe6, 0x10, 0x40, 0xe6, 0x13, 0x40, 0xf4);
	check(run_to_stop(vcpu) == KC_STOP_STOP && recorder.count == 3);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && recorder.count == 4 && !vcpu->active);
	check(kc_stat_read(&vcpu->stats, KC_STAT_halts) == 0);
	kc_vcpu_wakeup(vcpu);
	check(run_to_stop(vcpu) == KC_STOP_IDLE && kc_stat_read(&vcpu->stats, KC_STAT_halts) == 1);

	/* Steps, with the handler that would step within. */
	set_start(vcpu, CODE);
	check_ok(kc_vcpu_claim(vcpu, &err));
	kc_vcpu_activate(vcpu);
	check_ok(kc_vcpu_step(vcpu, 2, &done, &err));
	check(done == 2 && recorder.count == 6);
	kc_vcpu_release(vcpu);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(vcpu);
}

int main(void)
{
	guest = make_guest();
	test_before_start();
	test_memory_mode();
	test_ticks();
	test_run_ticks();
	test_idle_jumps();
	test_periodic();
	test_sooner();
	test_interrupts();
	test_flags_written();
	test_coarse_ticks();
	test_handlers();
	free_guest(&guest);
	return 0;
}
