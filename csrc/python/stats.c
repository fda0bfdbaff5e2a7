// SPDX-License-Identifier: MIT
/* Statistics as a mapping: a vCPU's own, or the sums over a VM's vCPUs. */
#include <string.h>

#include "module.h"

struct pc_stats {
	PyObject_HEAD
	struct pc_vm *vm; /* one of the two is NULL */
	struct pc_vcpu *vcpu;
};

PyObject *pc_stats_new(struct pc_state *state, struct pc_vm *vm, struct pc_vcpu *vcpu)
{
	struct pc_stats *self = (struct pc_stats *)state->Stats->tp_alloc(state->Stats, 0);

	if (self) {
		self->vm = (struct pc_vm *)Py_XNewRef(vm);
		self->vcpu = (struct pc_vcpu *)Py_XNewRef(vcpu);
	}
	return (PyObject *)self;
}

static int stats_traverse(PyObject *object, visitproc visit, void *arg)
{
	struct pc_stats *self = (struct pc_stats *)object;

	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->vm);
	Py_VISIT(self->vcpu);
	return 0;
}

static void stats_dealloc(PyObject *object)
{
	struct pc_stats *self = (struct pc_stats *)object;
	PyTypeObject *type = Py_TYPE(self);

	PyObject_GC_UnTrack(self);
	Py_XDECREF(self->vm);
	Py_XDECREF(self->vcpu);
	type->tp_free(self);
	Py_DECREF(type);
}

/* ---- the vCPUs that count ---- */

struct sources {
	struct kc_vcpu **vcpus;
	size_t count;
};

static int sources_get(struct pc_stats *self, struct sources *sources)
{
	struct kc_error err;
	struct pc_gil gil;

	if (self->vcpu) {
		sources->vcpus = calloc(1, sizeof(*sources->vcpus));
		if (!sources->vcpus) {
			PyErr_NoMemory();
			return -1;
		}
		sources->vcpus[0] = kc_vcpu_get(self->vcpu->vcpu);
		sources->count = 1;
		return 0;
	}
	pc_release(&gil, NULL);
	sources->vcpus = kc_vm_vcpus(self->vm->vm, &sources->count, &err);
	pc_acquire(&gil);
	if (sources->vcpus)
		return 0;
	pc_raise(pc_state_of_type(Py_TYPE(self)), &err, NULL);
	return -1;
}

static void sources_put(struct sources *sources)
{
	struct pc_gil gil;

	/* The last reference to a vCPU frees it, which may wait. */
	pc_release(&gil, NULL);
	for (size_t i = 0; i < sources->count; i++)
		kc_vcpu_put(sources->vcpus[i]);
	pc_acquire(&gil);
	free(sources->vcpus);
}

static bool known(struct kc_vcpu *vcpu, enum kc_stat stat)
{
	/* A chosen event stands in for instructions where a stop is to be tried; it is no count of them. */
	return stat != KC_STAT_insts || (vcpu->insts_known && (vcpu->time_source != KC_TIME_PERF ||
							       vcpu->counters.hardware));
}

static bool sum(const struct sources *sources, enum kc_stat stat, uint64_t *value)
{
	*value = 0;
	for (size_t i = 0; i < sources->count; i++) {
		if (!known(sources->vcpus[i], stat))
			return false;
		*value += kc_stat_read(&sources->vcpus[i]->stats, stat);
	}
	return true;
}

/* ---- the mapping ---- */

/* The statistic's number; -1 with KeyError. */
static int find(PyObject *name)
{
	if (PyUnicode_Check(name))
		for (int i = 0; i < KC_STAT_COUNT; i++)
			if (PyUnicode_CompareWithASCIIString(name, kc_stat_info[i].name) == 0)
				return i;
	PyErr_SetObject(PyExc_KeyError, name);
	return -1;
}

static PyObject *stats_subscript(PyObject *self, PyObject *name)
{
	struct sources sources;
	int stat = find(name);
	uint64_t value;
	bool is_known;

	if (stat < 0 || sources_get((struct pc_stats *)self, &sources))
		return NULL;
	is_known = sum(&sources, stat, &value);
	sources_put(&sources);
	if (!is_known)
		Py_RETURN_NONE;
	return PyLong_FromUnsignedLongLong(value);
}

static Py_ssize_t stats_length(PyObject *self)
{
	return KC_STAT_COUNT;
}

static int stats_contains(PyObject *self, PyObject *name)
{
	if (find(name) >= 0)
		return 1;
	PyErr_Clear();
	return 0;
}

static PyObject *names(void)
{
	PyObject *tuple = PyTuple_New(KC_STAT_COUNT);

	for (int i = 0; tuple && i < KC_STAT_COUNT; i++) {
		PyObject *name = PyUnicode_InternFromString(kc_stat_info[i].name);

		if (!name)
			Py_CLEAR(tuple);
		else
			PyTuple_SET_ITEM(tuple, i, name);
	}
	return tuple;
}

static PyObject *stats_iter(PyObject *self)
{
	PyObject *tuple = names(), *iterator = tuple ? PyObject_GetIter(tuple) : NULL;

	Py_XDECREF(tuple);
	return iterator;
}

static PyObject *as_dict(PyObject *self)
{
	PyObject *dict = PyDict_New();
	struct sources sources;

	if (!dict || sources_get((struct pc_stats *)self, &sources)) {
		Py_XDECREF(dict);
		return NULL;
	}
	for (int i = 0; dict && i < KC_STAT_COUNT; i++) {
		uint64_t number;
		PyObject *value = sum(&sources, i, &number) ? PyLong_FromUnsignedLongLong(number)
							    : Py_NewRef(Py_None);

		if (!value || PyDict_SetItemString(dict, kc_stat_info[i].name, value))
			Py_CLEAR(dict);
		Py_XDECREF(value);
	}
	sources_put(&sources);
	return dict;
}

/* The views that collections.abc.Mapping gives its heirs. */
static PyObject *view(PyObject *self, const char *class)
{
	PyObject *abc = PyImport_ImportModule("collections.abc");
	PyObject *result = abc ? PyObject_CallMethod(abc, class, "O", self) : NULL;

	Py_XDECREF(abc);
	return result;
}

static PyObject *stats_keys(PyObject *self, PyObject *ignored)
{
	return view(self, "KeysView");
}

static PyObject *stats_values(PyObject *self, PyObject *ignored)
{
	return view(self, "ValuesView");
}

static PyObject *stats_items(PyObject *self, PyObject *ignored)
{
	return view(self, "ItemsView");
}

static PyObject *stats_get(PyObject *self, PyObject *args, PyObject *kwargs)
{
	static char *keywords[] = { "", "default", NULL };
	PyObject *name, *missing = Py_None, *value;

	if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:get", keywords, &name, &missing))
		return NULL;
	value = stats_subscript(self, name);
	if (value || !PyErr_ExceptionMatches(PyExc_KeyError))
		return value;
	PyErr_Clear();
	return Py_NewRef(missing);
}

static PyObject *stats_richcompare(PyObject *self, PyObject *other, int op)
{
	PyObject *mine, *theirs, *result = NULL;

	if ((op != Py_EQ && op != Py_NE) ||
	    !(PyDict_Check(other) || Py_TYPE(other) == Py_TYPE(self)))
		Py_RETURN_NOTIMPLEMENTED;
	mine = as_dict(self);
	theirs = PyDict_Check(other) ? Py_NewRef(other) : as_dict(other);
	if (mine && theirs)
		result = PyObject_RichCompare(mine, theirs, op);
	Py_XDECREF(mine);
	Py_XDECREF(theirs);
	return result;
}

static PyObject *stats_repr(PyObject *self)
{
	PyObject *dict = as_dict(self);
	PyObject *text = dict ? PyUnicode_FromFormat("<Stats %R>", dict) : NULL;

	Py_XDECREF(dict);
	return text;
}

static PyObject *stats_describe(PyObject *self, PyObject *name)
{
	int stat = find(name);

	return stat < 0 ? NULL : PyUnicode_FromString(kc_stat_info[stat].description);
}

/* ---- gem5's text ---- */

/* A line as gem5 sets it: the columns behind the value are for distributions. */
static void print_line(FILE *out, const char *object, enum kc_stat stat, bool is_known,
		       uint64_t value)
{
	char name[128],
		number[24] = "nan"; /* which is what gem5 prints for what it does not know */

	snprintf(name, sizeof(name), "system%s%s.%s", *object ? "." : "", object,
		 kc_stat_info[stat].gem5_name);
	if (is_known)
		snprintf(number, sizeof(number), "%llu", (unsigned long long)value);
	fprintf(out, "%-40s %12s %10s %10s # %s (Unspecified)\n", name, number, "", "",
		kc_stat_info[stat].description);
}

static void print_stats(FILE *out, const char *object, const struct sources *sources)
{
	for (int i = 0; i < KC_STAT_COUNT; i++) {
		uint64_t value;
		bool is_known = sum(sources, i, &value);

		print_line(out, object, i, is_known, value);
	}
}

static PyObject *stats_dump(PyObject *object, PyObject *ignored)
{
	struct pc_stats *self = (struct pc_stats *)object;
	kc_auto_free char *text = NULL;
	struct sources sources;
	size_t size;
	FILE *out;

	if (sources_get(self, &sources))
		return NULL;
	out = open_memstream(&text, &size);
	if (out) {
		fputs("\n---------- Begin Simulation Statistics ----------\n", out);
		for (size_t i = 0; i < sources.count; i++)
			print_stats(out, sources.vcpus[i]->name,
				    &(struct sources){ &sources.vcpus[i], 1 });
		if (self->vm)
			print_stats(out, "", &sources);
		fputs("\n---------- End Simulation Statistics   ----------\n", out);
	}
	sources_put(&sources);
	if (!out || fclose(out))
		return PyErr_NoMemory();
	return PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, "replace");
}

static PyObject *stats_reset(PyObject *self, PyObject *ignored)
{
	struct sources sources;

	if (sources_get((struct pc_stats *)self, &sources))
		return NULL;
	for (size_t i = 0; i < sources.count; i++)
		kc_stats_reset(&sources.vcpus[i]->stats);
	sources_put(&sources);
	Py_RETURN_NONE;
}

static PyMethodDef stats_methods[] = {
	{ "describe", stats_describe, METH_O, DOC_Stats_describe },
	{ "dump", stats_dump, METH_NOARGS, DOC_Stats_dump },
	{ "reset", stats_reset, METH_NOARGS, DOC_Stats_reset },
	/* What Mapping has, and the stub inherits from it with its signatures. */
	{ "keys", stats_keys, METH_NOARGS, "The names." },
	{ "values", stats_values, METH_NOARGS, "The numbers." },
	{ "items", stats_items, METH_NOARGS, "Names and numbers." },
	{ "get", (PyCFunction)(void (*)(void))stats_get, METH_VARARGS | METH_KEYWORDS,
	  "The number of that name, or default." },
	{ NULL, NULL, 0, NULL },
};

static PyType_Slot stats_slots[] = {
	{ Py_tp_doc, (void *)DOC_Stats },
	{ Py_tp_dealloc, stats_dealloc },
	{ Py_tp_traverse, stats_traverse },
	{ Py_tp_repr, stats_repr },
	{ Py_tp_iter, stats_iter },
	{ Py_tp_richcompare, stats_richcompare },
	{ Py_tp_hash, PyObject_HashNotImplemented },
	{ Py_mp_subscript, stats_subscript },
	{ Py_mp_length, stats_length },
	{ Py_sq_contains, stats_contains },
	{ Py_tp_methods, stats_methods },
	{ 0, NULL },
};

static PyType_Spec stats_spec = {
	.name = "kvmcpu._kvm.Stats",
	.basicsize = sizeof(struct pc_stats),
	.flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
		 Py_TPFLAGS_MAPPING,
	.slots = stats_slots,
};

int pc_stats_init(PyObject *module, struct pc_state *state)
{
	PyObject *abc, *result;

	state->Stats = pc_add_type(module, &stats_spec, NULL);
	if (!state->Stats)
		return -1;
	abc = PyImport_ImportModule("collections.abc");
	if (!abc)
		return -1;
	result = PyObject_GetAttrString(abc, "Mapping");
	Py_SETREF(abc, result);
	result = abc ? PyObject_CallMethod(abc, "register", "O", state->Stats) : NULL;
	Py_XDECREF(abc);
	Py_XDECREF(result);
	return result ? 0 : -1;
}
