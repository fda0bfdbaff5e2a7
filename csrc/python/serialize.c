// SPDX-License-Identifier: MIT
/*
 * Everything that a vCPU holds as a plain dict, back again, and from one vCPU into another (V19 to V21). A
 * state is looked at as a whole before any of it is restored.
 */
#include <string.h>

#include "arch/arch.h"
#include "onereg.h"
#include "vcpu_parts.h"
#if defined(__x86_64__)
#include "arch/x86_64.h"
#define EARLY_FILES KC_X86_MP_STATE /* files below go before the MSRs */
#define MSR_TSC_DEADLINE 0x6e0 /* arms a timer of the local APIC: after it */
#else
#define EARLY_FILES kc_arch_file_count
#endif

#define STATE_VERSION 1

static void cleanup_ref(PyObject **object)
{
	Py_XDECREF(*object);
}

#define auto_ref __attribute__((cleanup(cleanup_ref))) PyObject

static int claim(PyObject *self)
{
	return pc_vcpu_claim(pc_vcpu_state(self), pc_vcpu_of(self));
}

static void fail(PyObject *self, const struct kc_error *err)
{
	pc_raise(pc_vcpu_state(self), err, self);
}

static int wrong_state(PyObject *self, const char *text)
{
	PyErr_Format(pc_vcpu_state(self)->errors[PC_StateError], "%s %s",
		     pc_vcpu_of(self)->vcpu->name, text);
	return -1;
}

/* ---- into a dict ---- */

/* Takes over the reference. */
static int put(PyObject *dict, const char *name, PyObject *value)
{
	int failed = value ? PyDict_SetItemString(dict, name, value) : -1;

	Py_XDECREF(value);
	return failed;
}

static int append(PyObject *list, PyObject *value)
{
	int failed = value ? PyList_Append(list, value) : -1;

	Py_XDECREF(value);
	return failed;
}

static int put_files(PyObject *self, PyObject *dict)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	struct kc_error err;

	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		const void *data;

		if (!(vcpu->context.present & 1u << i))
			continue;
		data = kc_context_read(vcpu, i, &err);
		if (!data) {
			fail(self, &err);
			return -1;
		}
		if (put(dict, kc_arch_files[i].name,
			PyBytes_FromStringAndSize(data, (Py_ssize_t)vcpu->context.size[i])))
			return -1;
	}
	return 0;
}

/* Pairs, not a dict: JSON knows no numbers as keys. */
static PyObject *msrs(PyObject *self)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	auto_ref *list = PyList_New(0);
	kc_auto_free uint32_t *indices = NULL;
	struct kc_error err;
	uint64_t value;
	size_t count;

	indices = kc_arch_msr_list(vcpu->vm, &count, &err);
	if (!indices)
		fail(self, &err);
	if (!list || !indices)
		return NULL;
	for (size_t i = 0; i < count; i++)
		if (!kc_arch_get_msr(vcpu, indices[i], &value, &err) &&
		    append(list, Py_BuildValue("[IK]", indices[i], (unsigned long long)value)))
			return NULL;
	return kc_move(list);
}

static PyObject *cpuid(PyObject *self)
{
	auto_ref *list = PyList_New(0);
	kc_auto_free struct kc_cpuid_entry *entries = NULL;
	struct kc_error err;
	size_t count;

	entries = kc_arch_get_cpuid(pc_vcpu_of(self)->vcpu, &count, &err);
	if (!entries)
		fail(self, &err);
	if (!list || !entries)
		return NULL;
	for (size_t i = 0; i < count; i++) {
		const uint32_t *w = entries[i].word;

		if (append(list,
			   Py_BuildValue("[IIIIIII]", w[0], w[1], w[2], w[3], w[4], w[5], w[6])))
			return NULL;
	}
	return kc_move(list);
}

static bool is_msr(uint64_t id)
{
#if defined(__x86_64__)
	return id == KC_X86_REG_MSR((uint32_t)id);
#else
	return false;
#endif
}

/* Those of the one-register interface that are not among the MSRs. */
static PyObject *one_regs(PyObject *self)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	auto_ref *list = PyList_New(0);
	kc_auto_free uint64_t *ids = NULL;
	uint8_t value[KC_ONE_REG_MAX];
	struct kc_error err;
	size_t count = 0;

	ids = kc_one_reg_list(vcpu, &count, &err);
	if (!ids && err.kind != KC_ERR_UNSUPPORTED) {
		fail(self, &err);
		return NULL;
	}
	for (size_t i = 0; list && ids && i < count; i++) {
		size_t size = kc_one_reg_size(ids[i]);

		if (is_msr(ids[i]) || !size || kc_one_reg_get(vcpu, ids[i], value, &err))
			continue;
		if (append(list, Py_BuildValue("[Ky#]", (unsigned long long)ids[i], value,
					       (Py_ssize_t)size)))
			return NULL;
	}
	return kc_move(list);
}

/* What was asked for and not delivered yet. */
static PyObject *interrupts(struct kc_vcpu *vcpu)
{
	auto_ref *list = PyList_New(0);

	for (int vector = 0; list && vector < 256; vector++)
		if ((atomic_load(&vcpu->interrupts[vector / 64]) >> (vector % 64) & 1) &&
		    append(list, PyLong_FromLong(vector)))
			return NULL;
	return kc_move(list);
}

static int put_all(PyObject *self, PyObject *dict)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	bool nmi = atomic_load(&vcpu->requests) & KC_REQUEST_NMI;

	if (put(dict, "version", PyLong_FromLong(STATE_VERSION)) ||
	    put(dict, "arch", PyUnicode_FromString(kc_arch_name)) ||
	    put(dict, "active", PyBool_FromLong(vcpu->active)) ||
	    put(dict, "period", PyLong_FromUnsignedLongLong(vcpu->period)) ||
	    put(dict, "interrupts", interrupts(vcpu)) || put(dict, "nmi", PyBool_FromLong(nmi)))
		return -1;
#if defined(__x86_64__)
	struct kc_error err;
	uint32_t khz;

	if (!kc_x86_get_tsc_khz(vcpu, &khz, &err) &&
	    put(dict, "tsc_khz", PyLong_FromUnsignedLong(khz)))
		return -1;
#endif
	return put(dict, "cpuid", cpuid(self)) || put_files(self, dict) ||
			       put(dict, "msrs", msrs(self)) ||
			       put(dict, "one_regs", one_regs(self))
		       ? -1
		       : 0;
}

PyObject *pc_vcpu_serialize(PyObject *self, PyObject *ignored)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	auto_ref *dict = PyDict_New();
	int failed;

	if (!dict || claim(self))
		return NULL;
	failed = vcpu->status == KC_IDLE
			 ? put_all(self, dict)
			 : wrong_state(self, "is not Idle: drain() it before it is serialized");
	if (!failed)
		kc_trace(vcpu, Checkpoint, "serialized");
	pc_vcpu_release(pc_vcpu_of(self));
	return failed ? NULL : kc_move(dict);
}

/* ---- out of a dict, into C: what is wrong with it shows here ---- */

struct msr {
	uint32_t index;
	uint64_t value;
};

struct one_reg {
	uint64_t id;
	size_t size;
	uint8_t value[KC_ONE_REG_MAX];
};

struct state {
	PyObject *files[KC_FILES_MAX]; /* bytes; NULL: it has none */
	struct msr *msrs;
	struct one_reg *one_regs;
	struct kc_cpuid_entry *cpuid;
	size_t msr_count, one_reg_count, cpuid_count;
	uint64_t interrupts[4];
	uint32_t tsc_khz; /* 0: it has none */
	bool active, nmi;
};

static void state_free(struct state *state)
{
	for (int i = 0; i < KC_FILES_MAX; i++)
		Py_XDECREF(state->files[i]);
	free(state->msrs);
	free(state->one_regs);
	free(state->cpuid);
}

static int bad(const char *format, const char *what)
{
	PyErr_Format(PyExc_ValueError, format, what);
	return -1;
}

/* Borrowed; NULL with KeyError. */
static PyObject *need(PyObject *dict, const char *name)
{
	PyObject *value = PyDict_GetItemString(dict, name);

	if (!value)
		PyErr_Format(PyExc_KeyError, "the state has no '%s'", name);
	return value;
}

static int need_bool(PyObject *dict, const char *name, bool *flag)
{
	PyObject *value = need(dict, name);
	int truth = value ? PyObject_IsTrue(value) : -1;

	*flag = truth > 0;
	return truth < 0 ? -1 : 0;
}

/* A list of the state as a tuple; its items are looked at one by one. */
static PyObject *need_list(PyObject *dict, const char *name)
{
	PyObject *value = need(dict, name), *list;

	if (!value)
		return NULL;
	list = PySequence_Tuple(value);
	if (!list && PyErr_ExceptionMatches(PyExc_TypeError))
		bad("the state's '%s' is not a list", name);
	return list;
}

static int pair(PyObject *item, const char *what, PyObject **both, PyObject **first,
		PyObject **second)
{
	*both = PySequence_Tuple(item);
	if (!*both && !PyErr_ExceptionMatches(PyExc_TypeError))
		return -1;
	if (!*both || PyTuple_GET_SIZE(*both) != 2)
		return bad("an entry of the state's '%s' is not a pair", what);
	*first = PyTuple_GET_ITEM(*both, 0);
	*second = PyTuple_GET_ITEM(*both, 1);
	return 0;
}

static int parse_msr(PyObject *item, struct msr *msr)
{
	auto_ref *both = NULL;
	PyObject *first, *second;
	uint64_t index;

	if (pair(item, "msrs", &both, &first, &second) ||
	    pc_uint(first, "an MSR's number", UINT32_MAX, &index) ||
	    pc_u64(second, "an MSR's value", &msr->value))
		return -1;
	msr->index = (uint32_t)index;
	return 0;
}

static int parse_msrs(PyObject *dict, struct state *state)
{
	auto_ref *list = need_list(dict, "msrs");

	if (!list)
		return -1;
	state->msr_count = (size_t)PyTuple_GET_SIZE(list);
	state->msrs = calloc(state->msr_count + 1, sizeof(*state->msrs));
	if (!state->msrs) {
		PyErr_NoMemory();
		return -1;
	}
	for (size_t i = 0; i < state->msr_count; i++)
		if (parse_msr(PyTuple_GET_ITEM(list, (Py_ssize_t)i), &state->msrs[i]))
			return -1;
	return 0;
}

static int parse_one_reg(PyObject *item, struct one_reg *reg)
{
	auto_ref *both = NULL;
	auto_ref *bytes = NULL;
	PyObject *first, *second;

	if (pair(item, "one_regs", &both, &first, &second) ||
	    pc_u64(first, "a register's id", &reg->id))
		return -1;
	bytes = PyBytes_FromObject(second);
	if (!bytes)
		return -1;
	reg->size = kc_one_reg_size(reg->id);
	if (!reg->size || (size_t)PyBytes_GET_SIZE(bytes) != reg->size)
		return bad("a register in the state's '%s' is not as large as its id says",
			   "one_regs");
	memcpy(reg->value, PyBytes_AS_STRING(bytes), reg->size);
	return 0;
}

static int parse_one_regs(PyObject *dict, struct state *state)
{
	auto_ref *list = need_list(dict, "one_regs");

	if (!list)
		return -1;
	state->one_reg_count = (size_t)PyTuple_GET_SIZE(list);
	state->one_regs = calloc(state->one_reg_count + 1, sizeof(*state->one_regs));
	if (!state->one_regs) {
		PyErr_NoMemory();
		return -1;
	}
	for (size_t i = 0; i < state->one_reg_count; i++)
		if (parse_one_reg(PyTuple_GET_ITEM(list, (Py_ssize_t)i), &state->one_regs[i]))
			return -1;
	return 0;
}

static int parse_interrupts(PyObject *dict, struct state *state)
{
	auto_ref *list = need_list(dict, "interrupts");
	uint64_t vector;

	if (!list)
		return -1;
	for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(list); i++) {
		if (pc_uint(PyTuple_GET_ITEM(list, i), "an interrupt's vector", 255, &vector))
			return -1;
		state->interrupts[vector / 64] |= 1ULL << (vector % 64);
	}
	return need_bool(dict, "nmi", &state->nmi);
}

static int parse_files(PyObject *dict, struct state *state)
{
	for (unsigned int i = 0; i < kc_arch_file_count; i++) {
		PyObject *value = PyDict_GetItemString(dict, kc_arch_files[i].name);

		if (!value)
			continue;
		if (!PyObject_CheckBuffer(value))
			return bad("the state's '%s' is not bytes", kc_arch_files[i].name);
		state->files[i] = PyBytes_FromObject(value);
		if (!state->files[i])
			return -1;
	}
	return 0;
}

static int parse_header(PyObject *dict)
{
	PyObject *version = need(dict, "version"), *arch = version ? need(dict, "arch") : NULL;
	uint64_t number;

	if (!version || !arch || pc_u64(version, "the state's version", &number))
		return -1;
	if (number != STATE_VERSION) {
		PyErr_Format(PyExc_ValueError, "the state has version %llu, this kvmcpu reads %d",
			     (unsigned long long)number, STATE_VERSION);
		return -1;
	}
	if (!PyUnicode_Check(arch) || PyUnicode_CompareWithASCIIString(arch, kc_arch_name)) {
		PyErr_Format(PyExc_ValueError,
			     "the state is of a vCPU of architecture %R, this is one of '%s'", arch,
			     kc_arch_name);
		return -1;
	}
	return 0;
}

static bool is_known(PyObject *name)
{
	static const char *const known[] = { "version", "arch",	   "active", "period", "interrupts",
					     "nmi",	"tsc_khz", "cpuid",  "msrs",   "one_regs" };

	if (!PyUnicode_Check(name))
		return false;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!PyUnicode_CompareWithASCIIString(name, known[i]))
			return true;
	for (unsigned int i = 0; i < kc_arch_file_count; i++)
		if (!PyUnicode_CompareWithASCIIString(name, kc_arch_files[i].name))
			return true;
	return false;
}

/* What is not understood may be what matters. */
static int refuse_unknown(PyObject *dict)
{
	PyObject *name, *value;
	Py_ssize_t at = 0;

	while (PyDict_Next(dict, &at, &name, &value)) {
		if (is_known(name))
			continue;
		PyErr_Format(PyExc_ValueError, "the state has an unknown entry %R", name);
		return -1;
	}
	return 0;
}

static int parse(PyObject *mapping, struct state *state)
{
	auto_ref *dict = PyDict_New();
	PyObject *cpuid_table, *khz;
	uint64_t period, number = 0;

	if (!PyDict_Check(mapping) && !PyObject_HasAttrString(mapping, "keys")) {
		PyErr_Format(PyExc_TypeError, "a state is a mapping, not %.100s",
			     Py_TYPE(mapping)->tp_name);
		return -1;
	}
	if (!dict || PyDict_Update(dict, mapping) || parse_header(dict) || refuse_unknown(dict) ||
	    parse_files(dict, state) || parse_msrs(dict, state) || parse_one_regs(dict, state) ||
	    parse_interrupts(dict, state) || need_bool(dict, "active", &state->active))
		return -1;
	if (!need(dict, "period") || pc_u64(need(dict, "period"), "the state's period", &period))
		return -1;
	khz = PyDict_GetItemString(dict, "tsc_khz");
	if (khz && pc_uint(khz, "the state's tsc_khz", UINT32_MAX, &number))
		return -1;
	state->tsc_khz = (uint32_t)number;
	cpuid_table = need(dict, "cpuid");
	if (!cpuid_table)
		return -1;
	state->cpuid = pc_cpuid_from_python(cpuid_table, &state->cpuid_count);
	return state->cpuid ? 0 : -1;
}

/* ---- whether this vCPU can take it ---- */

static int check_file(struct kc_vcpu *vcpu, const struct state *state, unsigned int i)
{
	const struct kc_file *file = &kc_arch_files[i];
	bool here = vcpu->context.present & 1u << i;
	size_t size = vcpu->context.size[i], got;

	if (!state->files[i]) {
		if (!here)
			return 0;
		if (file->needs_irqchip)
			return bad(
				"the state has no '%s': it is of a VM without an interrupt controller "
				"in the kernel, and this one has one",
				file->name);
		PyErr_Format(PyExc_KeyError, "the state has no '%s'", file->name);
		return -1;
	}
	if (!here)
		return bad(
			file->needs_irqchip
				? "the state has '%s', and this VM has no interrupt controller in the "
				  "kernel: create_irqchip() first"
				: "the state has '%s', and this kernel has no interface for it",
			file->name);
	got = (size_t)PyBytes_GET_SIZE(state->files[i]);
	/* A larger area may hold features that are not in the state: they are zero, not in use. */
	if (got == size || (file->size_cap && got >= file->size && got < size))
		return 0;
	PyErr_Format(PyExc_ValueError, "the state's '%s' has %zu bytes, and this vCPU's has %zu",
		     file->name, got, size);
	return -1;
}

static int check(struct kc_vcpu *vcpu, const struct state *state)
{
	for (unsigned int i = 0; i < kc_arch_file_count; i++)
		if (check_file(vcpu, state, i))
			return -1;
	return 0;
}

/* ---- restoring ---- */

static int restore_cpuid(struct kc_vcpu *vcpu, const struct state *state, struct kc_error *err)
{
	kc_auto_free struct kc_cpuid_entry *now = NULL;
	size_t count;

	now = kc_arch_get_cpuid(vcpu, &count, err);
	if (!now)
		return -1;
	/* The kernel takes none after the guest ran, not even the same one where registers show in it. */
	if (kc_arch_cpuid_same(now, count, state->cpuid, state->cpuid_count))
		return 0;
	return kc_arch_set_cpuid(vcpu, state->cpuid, state->cpuid_count, err);
}

static int restore_tsc_khz(struct kc_vcpu *vcpu, const struct state *state, struct kc_error *err)
{
#if defined(__x86_64__)
	uint32_t now;

	if (!state->tsc_khz)
		return 0;
	if (!kc_x86_get_tsc_khz(vcpu, &now, err) && now == state->tsc_khz)
		return 0;
	return kc_x86_set_tsc_khz(vcpu, state->tsc_khz, err);
#else
	return 0;
#endif
}

/* The files from first to last, into KVM at once: what follows depends on them. */
static int restore_files(struct kc_vcpu *vcpu, const struct state *state, unsigned int first,
			 unsigned int last, struct kc_error *err)
{
	for (unsigned int i = first; i < last; i++) {
		size_t size;
		uint8_t *data;

		if (!state->files[i])
			continue;
		data = kc_context_write(vcpu, i, err);
		if (!data)
			return -1;
		size = (size_t)PyBytes_GET_SIZE(state->files[i]);
		memcpy(data, PyBytes_AS_STRING(state->files[i]), size);
		memset(data + size, 0, vcpu->context.size[i] - size);
	}
	return kc_context_flush(vcpu, err);
}

/* Some can only be read, or have no value here but the one they have: fine if that is the state's. */
static int restore_msr(struct kc_vcpu *vcpu, const struct msr *msr, struct kc_error *err)
{
	struct kc_error unreadable;
	uint64_t now = 0;

	if (!kc_arch_get_msr(vcpu, msr->index, &now, &unreadable) && now == msr->value)
		return 0;
	if (!kc_arch_set_msr(vcpu, msr->index, msr->value, err))
		return 0;
	/* One that this vCPU does not have, and whose feature was not in use. */
	return msr->value || now ? -1 : 0;
}

static bool is_late(const struct msr *msr)
{
#if defined(__x86_64__)
	return msr->index == MSR_TSC_DEADLINE;
#else
	return false;
#endif
}

static int restore_msrs(struct kc_vcpu *vcpu, const struct state *state, bool late,
			struct kc_error *err)
{
	for (size_t i = 0; i < state->msr_count; i++)
		if (is_late(&state->msrs[i]) == late && restore_msr(vcpu, &state->msrs[i], err))
			return -1;
	return 0;
}

static int restore_one_regs(struct kc_vcpu *vcpu, const struct state *state, struct kc_error *err)
{
	for (size_t i = 0; i < state->one_reg_count; i++)
		if (kc_one_reg_set(vcpu, state->one_regs[i].id, state->one_regs[i].value, err))
			return -1;
	return 0;
}

static int restore_late_files(struct kc_vcpu *vcpu, const struct state *state, struct kc_error *err)
{
#if defined(__x86_64__)
	/* The local APIC before the deadline of its timer, the events when all that may queue some is done. */
	return restore_files(vcpu, state, KC_X86_LAPIC, KC_X86_LAPIC + 1, err) ||
			       restore_msrs(vcpu, state, true, err) ||
			       restore_files(vcpu, state, KC_X86_EVENTS, KC_X86_EVENTS + 1, err) ||
			       restore_files(vcpu, state, KC_X86_MP_STATE, KC_X86_MP_STATE + 1, err)
		       ? -1
		       : 0;
#else
	return 0;
#endif
}

static void restore_interrupts(struct kc_vcpu *vcpu, const struct state *state)
{
	unsigned int requests = state->nmi ? KC_REQUEST_NMI : 0;

	for (int i = 0; i < 4; i++) {
		atomic_store(&vcpu->interrupts[i], state->interrupts[i]);
		if (state->interrupts[i])
			requests |= KC_REQUEST_INTERRUPT;
	}
	atomic_fetch_and(&vcpu->requests, ~(KC_REQUEST_INTERRUPT | KC_REQUEST_NMI));
	atomic_fetch_or(&vcpu->requests, requests);
}

static int restore(struct kc_vcpu *vcpu, const struct state *state, struct kc_error *err)
{
	if (restore_cpuid(vcpu, state, err) || restore_tsc_khz(vcpu, state, err) ||
	    restore_files(vcpu, state, 0, EARLY_FILES, err) ||
	    restore_msrs(vcpu, state, false, err) || restore_one_regs(vcpu, state, err) ||
	    restore_late_files(vcpu, state, err)) {
		/* What the kernel refused must not stand in the way of every later call. */
		vcpu->context.dirty = 0;
		kc_context_invalidate(vcpu);
		return -1;
	}
	restore_interrupts(vcpu, state);
	/* Nothing of an access that was under way before is left. */
	vcpu->step_open = false;
	kc_trace(vcpu, Checkpoint, "restored");
	return 0;
}

/* The vCPU is claimed and in a state to be restored. */
static int restore_from(PyObject *self, const struct state *state)
{
	struct kc_error err;

	if (check(pc_vcpu_of(self)->vcpu, state))
		return -1;
	if (!restore(pc_vcpu_of(self)->vcpu, state, &err))
		return 0;
	fail(self, &err);
	return -1;
}

PyObject *pc_vcpu_unserialize(PyObject *self, PyObject *mapping)
{
	struct kc_vcpu *vcpu = pc_vcpu_of(self)->vcpu;
	struct state state = { 0 };
	int failed = parse(mapping, &state);

	if (!failed && !(failed = claim(self))) {
		if (vcpu->switched_out)
			failed = wrong_state(self,
					     "is switched out: another one may have taken over");
		else if (vcpu->status != KC_IDLE)
			failed = wrong_state(self, "is not Idle: drain() it before it is restored");
		else
			failed = restore_from(self, &state);
		/* A drained one stays so until resume(). */
		if (!failed && state.active)
			kc_vcpu_activate(vcpu);
		else if (!failed)
			kc_vcpu_suspend(vcpu);
		pc_vcpu_release(pc_vcpu_of(self));
	}
	state_free(&state);
	return failed ? NULL : Py_NewRef(Py_None);
}

/* ---- taking over (V20) ---- */

static int is_switched_out(PyObject *other)
{
	auto_ref *flag = PyObject_GetAttrString(other, "switched_out");

	return flag ? PyObject_IsTrue(flag) : -1;
}

static PyObject *state_of(PyObject *self, PyObject *other)
{
	int out = other == self ? 0 : is_switched_out(other);

	if (out < 0)
		return NULL;
	if (!out) {
		PyErr_Format(pc_vcpu_state(self)->errors[PC_StateError],
			     "%R is not switched out: drain() and switch_out() it first", other);
		return NULL;
	}
	return PyObject_CallMethod(other, "serialize", NULL);
}

static int take_over_check(PyObject *self)
{
	struct kc_error err;
	struct pc_gil gil;
	int failed;

	pc_release(&gil, NULL);
	failed = kc_vcpu_take_over_check(pc_vcpu_of(self)->vcpu, &err);
	pc_acquire(&gil);
	if (failed)
		fail(self, &err);
	return failed;
}

PyObject *pc_vcpu_take_over(PyObject *self, PyObject *other)
{
	struct state state = { 0 };
	PyObject *mapping = NULL;
	int failed = -1;

	if (claim(self))
		return NULL;
	if (!take_over_check(self))
		mapping = state_of(self, other);
	if (mapping && !parse(mapping, &state))
		failed = restore_from(self, &state);
	if (!failed)
		kc_vcpu_take_over_done(pc_vcpu_of(self)->vcpu, state.active);
	state_free(&state);
	Py_XDECREF(mapping);
	pc_vcpu_release(pc_vcpu_of(self));
	return failed ? NULL : Py_NewRef(Py_None);
}
