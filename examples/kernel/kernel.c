// SPDX-License-Identifier: MIT
/*
 * A multiboot kernel with a shell on the serial port: timer and serial interrupts, a driver that reads and writes, a
 * disk read by programmed I/O.
 *
 *   make -C examples/kernel && kvmcpu run examples/kernel/kernel.elf
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COM1 0x3f8
#define HZ 100
#define PIT_HZ 1193182
#define FIRST_VECTOR 0x20

struct multiboot_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4];
	uint32_t mmap_length, mmap_addr;
};

struct module {
	uint32_t start, end, string, reserved;
};

struct memory {
	uint32_t size;
	uint64_t base, length;
	uint32_t type;
} __attribute__((packed));

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;

	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

/* ---- interrupts ---- */

extern const uint32_t entries[16];
static volatile uint32_t ticks;
static uint64_t idt[256];

static void serial_interrupt(void);

/* Called by boot.S with interrupts off. */
void interrupt(uint32_t line)
{
	if (line == 7) { /* spurious, unless the controller has it in service */
		outb(0x20, 0x0b);
		if (!(inb(0x20) & 0x80))
			return;
	}
	if (line == 0)
		ticks++;
	else if (line == 4)
		serial_interrupt();
	if (line >= 8)
		outb(0xa0, 0x20);
	outb(0x20, 0x20);
}

static void interrupts_begin(void)
{
	static struct {
		uint16_t limit;
		uint32_t base;
	} __attribute__((packed)) pointer = { sizeof(idt) - 1, 0 };

	for (unsigned int i = 0; i < 16; i++) /* interrupt gates of the code segment */
		idt[FIRST_VECTOR + i] = (uint64_t)(entries[i] & 0xffff0000) << 32 |
					0x00008e0000080000ULL | (entries[i] & 0xffff);
	pointer.base = (uint32_t)idt;
	__asm__ volatile("lidt %0" : : "m"(pointer));
	/* Two 8259s in cascade at FIRST_VECTOR; all lines shut but timer, cascade and serial port. */
	outb(0x20, 0x11), outb(0x21, FIRST_VECTOR), outb(0x21, 4), outb(0x21, 1);
	outb(0xa0, 0x11), outb(0xa1, FIRST_VECTOR + 8), outb(0xa1, 2), outb(0xa1, 1);
	outb(0x21, 0xff & ~(1 << 0 | 1 << 2 | 1 << 4)), outb(0xa1, 0xff);
	/* The 8254's channel 0, rate generator. */
	outb(0x43, 0x34), outb(0x40, PIT_HZ / HZ & 0xff), outb(0x40, PIT_HZ / HZ >> 8);
	__asm__ volatile("sti");
}

/* ---- the serial port ---- */

static uint8_t ring[4096];
static volatile uint32_t head, tail; /* head is written by the interrupt */

/* Take what is there, as far as there is room; what stays in the port keeps its line up. */
static void serial_interrupt(void)
{
	while (head - tail < sizeof(ring) && inb(COM1 + 5) & 1)
		ring[head++ % sizeof(ring)] = inb(COM1);
	if (head - tail == sizeof(ring))
		outb(COM1 + 1, 0); /* until somebody has read */
}

static void serial_begin(void)
{
	outb(COM1 + 3, 0x80), outb(COM1, 1), outb(COM1 + 1, 0); /* 115200 baud */
	outb(COM1 + 3, 3), outb(COM1 + 2, 0xc7), outb(COM1 + 4, 0x0b);
	outb(COM1 + 1, 1);
}

static void put(char c)
{
	while (!(inb(COM1 + 5) & 0x20))
		;
	outb(COM1, (uint8_t)c);
}

static uint8_t get(void)
{
	uint8_t c;

	__asm__ volatile("cli" : : : "memory");
	while (head == tail) {
		outb(COM1 + 1, 1);
		/* sti holds interrupts off for one more instruction: none comes before the hlt. */
		__asm__ volatile("sti; hlt; cli" : : : "memory");
	}
	c = ring[tail++ % sizeof(ring)];
	outb(COM1 + 1, 1);
	__asm__ volatile("sti" : : : "memory");
	return c;
}

/* ---- text ---- */

static void print(const char *text)
{
	for (; *text; text++) {
		if (*text == '\n')
			put('\r');
		put(*text);
	}
}

static void print_number(uint32_t n, uint32_t base)
{
	char digits[33];
	int i = sizeof(digits) - 1;

	digits[i] = 0;
	do
		digits[--i] = "0123456789abcdef"[n % base];
	while (n /= base);
	print(base == 16 ? "0x" : ""), print(&digits[i]);
}

static void print_address(uint64_t n)
{
	int shift = 60;

	print("0x");
	while (shift && !(n >> shift & 15))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[n >> shift & 15]);
}

static uint32_t number(const char *text)
{
	uint32_t n = 0;

	for (; *text >= '0' && *text <= '9'; text++)
		n = n * 10 + (uint32_t)(*text - '0');
	return n;
}

static bool is(const char *line, const char *word)
{
	while (*word && *line == *word)
		line++, word++;
	return !*word && (!*line || *line == ' ');
}

/* ---- commands ---- */

static const struct multiboot_info *info;

static void print_memory(void)
{
	uint32_t at = info->mmap_addr;

	while (at < info->mmap_addr + info->mmap_length) {
		const struct memory *memory = (const struct memory *)at;

		print_address(memory->base), print(" + ");
		print_address(memory->length);
		print(memory->type == 1 ? " available\n" : " reserved\n");
		at += memory->size + 4;
	}
}

static void print_arguments(void)
{
	const struct module *module = (const struct module *)info->mods_addr;

	print("command line: "), print((const char *)info->cmdline), print("\n");
	for (uint32_t i = 0; info->flags & 8 && i < info->mods_count; i++, module++) {
		print("module "), print((const char *)module->string), print(": ");
		print_number(module->end - module->start, 10), print(" bytes, sum ");
		uint32_t sum = 0;
		for (uint32_t at = module->start; at < module->end; at++)
			sum += *(const uint8_t *)at;
		print_number(sum, 16), print("\n");
	}
}

/* Read so many KiB from the start of the first disk, 64 KiB at a time; prints the sum of each piece's ends. */
static void read_disk(uint32_t kib)
{
	static uint32_t buffer[128 * 128];
	uint32_t sum = 0;

	if (inb(0x1f7) == 0xff) {
		print("no disk\n");
		return;
	}
	for (uint32_t lba = 0; lba < 2 * kib; lba += 128) {
		uint32_t count = 2 * kib - lba < 128 ? 2 * kib - lba : 128;
		void *to = buffer;

		while (inb(0x1f7) & 0x80)
			;
		outb(0x1f6, (uint8_t)(0xe0 | lba >> 24)), outb(0x1f2, (uint8_t)count);
		outb(0x1f3, (uint8_t)lba), outb(0x1f4, (uint8_t)(lba >> 8)),
			outb(0x1f5, (uint8_t)(lba >> 16));
		outb(0x1f7, 0x20); /* READ SECTORS */
		for (uint32_t i = 0; i < count; i++) {
			uint32_t words = 256;

			while ((inb(0x1f7) & 0x88) != 0x08)
				if (inb(0x1f7) & 1) {
					print("disk error\n");
					return;
				}
			__asm__ volatile("rep insw"
					 : "+D"(to), "+c"(words)
					 : "d"(0x1f0)
					 : "memory");
		}
		sum += buffer[0] + buffer[count * 128 - 1];
	}
	print_number(kib, 10), print(" KiB, sum "), print_number(sum, 16), print("\n");
}

static void sum_input(uint32_t count)
{
	uint32_t sum = 0;

	print("ready\n");
	for (uint32_t i = 0; i < count; i++)
		sum = sum * 31 + get();
	print_number(count, 10), print(" bytes, sum "), print_number(sum, 16), print("\n");
}

static void execute(const char *line)
{
	const char *rest = line;

	while (*rest && *rest != ' ')
		rest++;
	while (*rest == ' ')
		rest++;
	if (is(line, "help")) {
		print("args  disk KIB  echo TEXT  exit STATUS  halt  help  mem  reboot  sleep TICKS\n"
		      "spew KIB  sum BYTES  ticks\n");
	} else if (is(line, "echo")) {
		print(rest), print("\n");
	} else if (is(line, "ticks")) {
		print_number(ticks, 10), print("\n");
	} else if (is(line, "sleep")) {
		uint32_t end = ticks + number(rest);
		while ((int32_t)(end - ticks) > 0)
			__asm__ volatile("hlt");
	} else if (is(line, "mem")) {
		print_memory();
	} else if (is(line, "args")) {
		print_arguments();
	} else if (is(line, "spew")) {
		for (uint32_t i = number(rest) * 16; i; i--) /* lines of 64 bytes */
			print("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\n");
	} else if (is(line, "disk")) {
		read_disk(number(rest));
	} else if (is(line, "sum")) {
		sum_input(number(rest));
	} else if (is(line, "exit")) {
		outb(0xf4, (uint8_t)number(rest));
	} else if (is(line, "reboot")) {
		outb(0x64, 0xfe);
	} else if (is(line, "halt")) {
		__asm__ volatile("cli; hlt");
	} else if (*line) {
		print("unknown command; try help\n");
	}
}

void main(uint32_t magic, const struct multiboot_info *from_loader)
{
	char line[128];
	size_t length = 0;

	interrupts_begin(); /* first: starting the controllers forgets interrupts that are on their way */
	serial_begin();
	if (magic != 0x2badb002) {
		print("not started by a multiboot loader\n");
		return;
	}
	info = from_loader;
	print("A kernel on a virtual CPU; try help\n> ");
	for (;;) {
		uint8_t c = get();

		if (c == '\r' || c == '\n') {
			print("\n");
			line[length] = 0;
			length = 0;
			execute(line);
			print("> ");
		} else if ((c == 8 || c == 127) && length) {
			length--;
			print("\b \b");
		} else if (c >= ' ' && c < 127 && length < sizeof(line) - 1) {
			line[length++] = (char)c;
			put((char)c);
		}
	}
}
