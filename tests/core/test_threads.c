// SPDX-License-Identifier: MIT
/* Many threads: one device for two vCPUs (V24), closing in the middle of anything, use after that, forks. */
#include "guest.h"

#include <sys/wait.h>

static struct guest guest;

/* ---- one device, two vCPUs ---- */

static int inside;
static uint64_t sum;

static void exclusive(struct recorder *recorder, struct kc_access *access)
{
	check(inside++ == 0);
	for (volatile int i = 0; i < 20; i++)
		;
	sum += kc_access_value(access);
	inside--;
}

static void *run_it(void *arg)
{
	check(run_to_stop(arg) == KC_STOP_IDLE);
	return NULL;
}

static void test_device(void)
{
	static struct recorder recorder = { .then = exclusive };
	struct kc_vcpu *vcpus[2] = { make_vcpu(&guest), make_vcpu(&guest) };
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	pthread_t threads[2];

	/* mov cx, 2000; mov al, 3; out 0x10, al; loop; hlt */
	put_code(&guest, CODE, 0xb9, 0xd0, 7, 0xb0, 3, 0xe6, 0x10, 0xe2, 0xfc, 0xf4);
	for (int i = 0; i < 2; i++)
		check(!pthread_create(&threads[i], NULL, run_it, vcpus[i]));
	for (int i = 0; i < 2; i++)
		check(!pthread_join(threads[i], NULL));
	check(sum == 2 * 2000 * 3 && recorder.count == 4000);
	check_ok(kc_range_remove(range, &err));
	kc_range_put(range, guest.vm);
	for (int i = 0; i < 2; i++)
		kc_vcpu_put(vcpus[i]);
}

/* ---- busy ---- */

static void *spin(void *arg)
{
	if (run_for(arg, KC_NEVER, NULL))
		check(err.kind == KC_ERR_CLOSED || err.kind == KC_ERR_BUSY);
	return NULL;
}

static void wait_inside(struct kc_vcpu *vcpu)
{
	while (!atomic_load(&vcpu->kick.thread) || !atomic_load(&vcpu->entry_start))
		usleep(50);
}

static void test_busy(void)
{
	struct kc_vcpu *vcpu = make_vcpu(&guest);
	pthread_t thread;
	uint8_t byte;

	put_code(&guest, CODE, 0xeb, 0xfe);
	check(!pthread_create(&thread, NULL, spin, vcpu));
	wait_inside(vcpu);
	check(kc_vcpu_claim(vcpu, &err) == -1 && err.kind == KC_ERR_BUSY);
	/* What any thread may do at any moment */
	check_ok(kc_memory_read(guest.vm, CODE, &byte, 1, &err));
	check(kc_stat_read(&vcpu->stats, KC_STAT_halts) == 0);
	check(kc_vcpu_live_tick(vcpu) >= kc_queue_now(vcpu->queue));
	check(kc_vcpu_drain(vcpu, &err) == 0);
	check(!pthread_join(thread, NULL));
	check(vcpu->drained && vcpu->stop_reason == KC_STOP_DRAINED);
	kc_vcpu_put(vcpu);
}

/* ---- closing ---- */

static void use_after_close(struct kc_vm *vm, struct kc_vcpu *vcpu)
{
	struct kc_device device = { 0 };
	uint64_t passed;
	uint8_t byte;
	int value = 0;

	check_ok(kc_vcpu_claim(vcpu, &err));
	check(kc_vcpu_run(vcpu, 1, &passed, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(kc_vcpu_enter(vcpu, 0, &passed, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(kc_vcpu_tick(vcpu, &passed, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(kc_vcpu_check(vcpu, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(kc_vcpu_drain(vcpu, &err) == -1 && err.kind == KC_ERR_CLOSED);
	kc_vcpu_release(vcpu);
	check(!kc_kick(vcpu) && !kc_vcpu_stop(vcpu));
	check(kc_vcpu_nmi(vcpu, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(kc_memory_read(vm, 0, &byte, 1, &err) == -1 && err.kind == KC_ERR_CLOSED);
	check(kc_vm_ioctl(vm, KVM_CHECK_EXTENSION, "x", &value, &err) == -1 &&
	      err.kind == KC_ERR_CLOSED);
	check(!kc_bus_map(vm, KC_IO, 0, 1, &device, false, &err) && err.kind == KC_ERR_CLOSED);
	check(kc_vm_schedule_inst_stop(vm, 1, &err) == -1 && err.kind == KC_ERR_CLOSED);
	kc_vm_close(vm);
}

/* While other threads run its vCPUs, or are just about to. */
static void test_close_running(void)
{
	for (int i = 0; i < 60; i++) {
		struct guest own = make_guest();
		struct kc_vcpu *vcpus[2] = { make_vcpu(&own), make_vcpu(&own) };
		pthread_t threads[2];

		put_code(&own, CODE, 0xeb, 0xfe);
		for (int j = 0; j < 2; j++)
			check(!pthread_create(&threads[j], NULL, spin, vcpus[j]));
		if (i % 3 == 0)
			wait_inside(vcpus[0]);
		else
			usleep((unsigned int)i * 5);
		kc_vm_close(own.vm);
		for (int j = 0; j < 2; j++)
			check(!pthread_join(threads[j], NULL));
		use_after_close(own.vm, vcpus[0]);
		kc_vcpu_put(vcpus[0]);
		kc_vcpu_put(vcpus[1]);
		free_guest(&own);
	}
}

/* The runner's reference is the last: it goes while the closing thread waits for it. */
static void *spin_and_put(void *arg)
{
	spin(arg);
	kc_vcpu_put(arg);
	return NULL;
}

static void test_close_and_put(void)
{
	for (int i = 0; i < 60; i++) {
		struct guest own = make_guest();
		pthread_t threads[3];

		put_code(&own, CODE, 0xeb, 0xfe);
		for (int j = 0; j < 3; j++)
			check(!pthread_create(&threads[j], NULL, spin_and_put, make_vcpu(&own)));
		usleep((unsigned int)i * 20);
		kc_vm_close(own.vm);
		for (int j = 0; j < 3; j++)
			check(!pthread_join(threads[j], NULL));
		check(own.vm->vcpu_count == 0);
		free_guest(&own);
	}
}

/* From inside a handler, while the other vCPU's handlers want the device lock. */
static struct guest closing;

static void close_it(struct recorder *recorder, struct kc_access *access)
{
	if (recorder->count == 50)
		kc_vm_close(closing.vm);
}

static void *run_until_closed(void *arg)
{
	if (run_for(arg, KC_NEVER, NULL))
		check(err.kind == KC_ERR_CLOSED);
	return NULL;
}

static void test_close_inside(void)
{
	for (int i = 0; i < 30; i++) {
		struct recorder recorder = { .then = close_it };
		struct kc_vcpu *vcpus[2];
		struct kc_range *range;
		pthread_t thread;

		closing = make_guest();
		vcpus[0] = make_vcpu(&closing);
		vcpus[1] = make_vcpu(&closing);
		range = map_recorder(&closing, KC_IO, 0x10, 1, &recorder);
		check(range);
		put_code(&closing, CODE, 0xe6, 0x10, 0xeb, 0xfc);
		check(!pthread_create(&thread, NULL, run_until_closed, vcpus[1]));
		run_until_closed(vcpus[0]);
		check(!pthread_join(thread, NULL));
		check(recorder.count >= 50 && recorder.released == 1);
		check(!vcpus[0]->run && !vcpus[1]->run);
		use_after_close(closing.vm, vcpus[0]);
		kc_range_put(range, closing.vm);
		kc_vcpu_put(vcpus[0]);
		kc_vcpu_put(vcpus[1]);
		free_guest(&closing);
	}
}

/* ---- ids, lives ---- */

static void test_lives(void)
{
	for (int i = 0; i < 100; i++) {
		struct guest own = make_guest();
		struct kc_vcpu *vcpu = make_vcpu(&own);

		put_code(&own, CODE, 0xf4);
		check(run_to_stop(vcpu) == KC_STOP_IDLE);
		if (i % 2) { /* in either order */
			free_guest(&own);
			kc_vcpu_put(vcpu);
		} else {
			kc_vcpu_put(vcpu);
			free_guest(&own);
		}
	}
}

/* ---- forks ---- */

static atomic_bool over;

static void *busy_runs(void *arg)
{
	while (!atomic_load(&over))
		check_ok(run_for(arg, PS_PER_MS / 10, NULL));
	return NULL;
}

/* Everything in the child says what is wrong, and nothing waits for the parent's threads. */
static void in_child(struct kc_vcpu *running, struct kc_vcpu *idle, struct kc_range *range)
{
	struct kc_device device = { 0 };
	struct kc_vm *made;
	size_t count;
	uint8_t byte;

	alarm(20);
	for (int i = 0; i < 2; i++) {
		struct kc_vcpu *vcpu = i ? running : idle;

		check(kc_vcpu_claim(vcpu, &err) == -1 && err.kind == KC_ERR_FORKED);
		check(!kc_kick(vcpu) && !kc_vcpu_stop(vcpu));
		check(kc_vcpu_drain(vcpu, &err) == -1 && err.kind == KC_ERR_FORKED);
		check(kc_vcpu_nmi(vcpu, &err) == -1 && err.kind == KC_ERR_FORKED);
		check(kc_vcpu_interrupt(vcpu, 40, &err) == -1 && err.kind == KC_ERR_FORKED);
	}
	check(kc_memory_read(guest.vm, 0, &byte, 1, &err) == -1 && err.kind == KC_ERR_FORKED);
	check(!kc_memory_slots(guest.vm, &count, &err) && err.kind == KC_ERR_FORKED);
	check(kc_slot_set_log_dirty(guest.slot, true, &err) == -1 && err.kind == KC_ERR_FORKED);
	check(kc_slot_remove(guest.slot, &err) == -1 && err.kind == KC_ERR_FORKED);
	check(!kc_bus_map(guest.vm, KC_IO, 0, 1, &device, false, &err) &&
	      err.kind == KC_ERR_FORKED);
	check(kc_range_remove(range, &err) == -1 && err.kind == KC_ERR_FORKED);
	made = kc_vm_create(guest.kvm, 0, 1000000000000ULL, &trace, &err);
	check(!made && err.kind == KC_ERR_FORKED);
	check(!kc_vm_vcpus(guest.vm, &count, &err) && err.kind == KC_ERR_FORKED);
	check(kc_vm_schedule_inst_stop(guest.vm, 1, &err) == -1 && err.kind == KC_ERR_FORKED);
	kc_vm_stop(guest.vm);
	kc_range_put(range, guest.vm);
	kc_vcpu_put(idle);
	kc_vcpu_put(running);
	free_guest(&guest);
	/* A VM of its own works. */
	guest = make_guest();
	idle = make_vcpu(&guest);
	put_code(&guest, CODE, 0xf4);
	check(run_to_stop(idle) == KC_STOP_IDLE);
	kc_vcpu_put(idle);
	free_guest(&guest);
}

static void test_fork(void)
{
	static struct recorder recorder;
	struct kc_vcpu *running = make_vcpu(&guest), *idle = make_vcpu(&guest);
	struct kc_range *range = map_recorder(&guest, KC_IO, 0x10, 1, &recorder);
	pthread_t thread;

	put_code(&guest, CODE, 0xe6, 0x10, 0xeb, 0xfc);
	check(!pthread_create(&thread, NULL, busy_runs, running));
	for (int i = 0; i < 20; i++) {
		int status;
		pid_t child;

		usleep(1000);
		child = fork();
		check(child >= 0);
		if (!child) {
			in_child(running, idle, range);
			_exit(0);
		}
		check(waitpid(child, &status, 0) == child);
		check(WIFEXITED(status) && WEXITSTATUS(status) == 0);
	}
	atomic_store(&over, true);
	check(!pthread_join(thread, NULL));
	/* The parent's goes on. */
	check_ok(run_for(idle, PS_PER_MS, NULL));
	kc_range_put(range, guest.vm);
	kc_vcpu_put(running);
	kc_vcpu_put(idle);
}

int main(void)
{
	guest = make_guest();
	test_device();
	test_busy();
	test_close_running();
	test_close_and_put();
	test_close_inside();
	test_lives();
	test_fork();
	free_guest(&guest);
	return 0;
}
