# SPDX-License-Identifier: MIT
"""The real-time clock and CMOS memory of a PC, as Motorola's MC146818 data sheet describes it.

Its time runs with the system's, from the host's clock in UTC or from ``start`` on. Where memory
sizes stand is what PC firmware has agreed on since the PC/AT (Ralf Brown's CMOS list).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvmcpu.devices.base import Device, DeviceError, Ports, Register, State
from kvmcpu.ram import HIGH_START, LOW_LIMIT

if TYPE_CHECKING:
    from datetime import datetime

    from kvmcpu._kvm import Event

_SIZE = 128
_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR = 0, 2, 4, 6, 7, 8, 9
_ALARM = (1, 3, 5)
_A, _B, _C, _D = 10, 11, 12, 13
_CENTURY = 0x32
_CLOCK = (_SECONDS, _MINUTES, _HOURS, _WEEKDAY, _DAY, _MONTH, _YEAR, _CENTURY)
_B_24H, _B_BINARY, _B_UPDATE, _B_ALARM, _B_PERIODIC, _B_SET = 2, 4, 0x10, 0x20, 0x40, 0x80
_C_IRQ = 0x80
_D_VALID = 0x80
_UPDATING = 0x80  # register A
_UPDATE_US = 244  # how long before an update that bit is set (data sheet, figure 16)
_PM = 0x80


@dataclass(eq=False, kw_only=True)
class Cmos(Device):
    """The clock at ports 0x70 and 0x71, interrupt line 8.

    start: the date and time at which it starts, ISO 8601; empty: the host's. boot: what firmware
    boots from, in order: "c" disk, "a" floppy, "d" CD, "n" network.
    """

    start: str = ""
    boot: str = "c"
    irq: int = 8

    ports = Ports(0x70, 2)
    index = Register(ports, 0, reset=_D)
    data = Register(ports, 1)

    memory = State(lambda: bytearray(_SIZE))
    offset_us = State(int)  # of the clock from the system's time, in microseconds since 1970
    stopped = State(int)  # the clock's time while register B's SET holds it, else 0

    def __post_init__(self) -> None:
        if set(self.boot) - set("acdn") or not 1 <= len(self.boot) <= 3:
            raise DeviceError(f'boot is up to three of "a", "c", "d", "n", not {self.boot!r}')
        self._first_us = time.time_ns() // 1000
        if self.start:
            from datetime import datetime, timezone

            try:
                first = datetime.fromisoformat(self.start)
            except ValueError as error:
                raise DeviceError(
                    f"start is a time such as 2026-01-31T12:00:00: {error}"
                ) from error
            if first.tzinfo is None:
                first = first.replace(tzinfo=timezone.utc)
            self._first_us = int(first.timestamp() * 1e6)

    def connect(self) -> None:
        self._line = self.board.irq(self.irq)
        self._event: Event | None = None
        self._per_us = self.board.vm.tick_frequency // 1_000_000
        self.offset_us = self._first_us - self._system_us()
        memory = self.memory
        memory[_A], memory[_B], memory[_D] = 0x26, _B_24H, _D_VALID
        low = min(self.board.memory, LOW_LIMIT)
        high = self.board.memory - low
        self._store(0x15, min(low >> 10, 640), 2)
        for at in (0x17, 0x30):  # above 1 MiB, in KiB
            self._store(at, min(max(low - (1 << 20), 0) >> 10, 0xFFFF), 2)
        self._store(0x34, min(max(low - (16 << 20), 0) >> 16, 0xFFFF), 2)
        self._store(0x5B, min(high >> 16, 0xFFFFFF), 3)
        assert HIGH_START == 1 << 32
        memory[0x5F] = self.board.cpus - 1
        memory[0x14] = 0x06  # equipment: a coprocessor, a mouse port
        order = ["acdn".index(letter) + 1 for letter in self.boot] + [0, 0]
        memory[0x3D] = order[0] | order[1] << 4
        memory[0x38] = order[2] << 4 | 1  # no floppy signature is asked for
        self._previous = self._clock_us()

    def _store(self, at: int, value: int, size: int) -> None:
        self.memory[at : at + size] = value.to_bytes(size, "little")

    # ---- time ----

    def _system_us(self) -> int:
        return self.board.vm.queue.now // self._per_us

    def _clock_us(self) -> int:
        return self.stopped or self._system_us() + self.offset_us

    @property
    def now(self) -> datetime:
        """The date and time that the guest sees, UTC."""
        from datetime import datetime, timedelta, timezone

        return datetime(1970, 1, 1, tzinfo=timezone.utc) + timedelta(microseconds=self._clock_us())

    def _encode(self, value: int) -> int:
        return value if self.memory[_B] & _B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.memory[_B] & _B_BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.memory[_B] & _B_24H:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (_PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.memory[_B] & _B_24H:
            return self._decode(value)
        return self._decode(value & ~_PM) % 12 + (12 if value & _PM else 0)

    def _show(self) -> None:
        """Put the time into its registers."""
        now = time.gmtime(self._clock_us() // 1_000_000)
        self.memory[_SECONDS] = self._encode(now.tm_sec)
        self.memory[_MINUTES] = self._encode(now.tm_min)
        self.memory[_HOURS] = self._encode_hour(now.tm_hour)
        self.memory[_WEEKDAY] = self._encode((now.tm_wday + 1) % 7 + 1)  # Sunday is 1
        self.memory[_DAY] = self._encode(now.tm_mday)
        self.memory[_MONTH] = self._encode(now.tm_mon)
        self.memory[_YEAR] = self._encode(now.tm_year % 100)
        self.memory[_CENTURY] = self._encode(now.tm_year // 100)

    def _set_time(self) -> None:
        """The time that the guest put into the registers. What is no time is left as it was."""
        from datetime import datetime, timezone

        memory = self.memory
        try:
            wanted = datetime(
                self._decode(memory[_CENTURY]) * 100 + self._decode(memory[_YEAR]),
                self._decode(memory[_MONTH]),
                self._decode(memory[_DAY]),
                self._decode_hour(memory[_HOURS]),
                self._decode(memory[_MINUTES]),
                self._decode(memory[_SECONDS]),
                tzinfo=timezone.utc,
            )
        except ValueError:
            return
        us = int(wanted.timestamp()) * 1_000_000
        if self.stopped:
            self.stopped = us or 1
        else:
            self.offset_us = us - self._system_us()

    # ---- interrupts ----

    def _period_us(self) -> float:
        """Of the periodic interrupt (data sheet, table 5); 0: none."""
        rate = self.memory[_A] & 15
        if not rate:
            return 0.0
        return 1e6 * (1 << (rate - 1 if rate > 2 else rate + 6)) / 32768

    def _due_us(self) -> int | None:
        """When the next thing happens that somebody wants to hear of, in the clock's time."""
        b, now = self.memory[_B], self._previous
        if b & _B_SET:
            return None
        due = []
        if b & (_B_UPDATE | _B_ALARM):
            due.append((now // 1_000_000 + 1) * 1_000_000)
        period = self._period_us()
        if b & _B_PERIODIC and period:
            due.append(int((now / period // 1 + 1) * period) + 1)
        return min(due, default=None)

    def _plan(self) -> None:
        due = self._due_us()
        if due is None:
            if self._event is not None:
                self._event.cancel()
            return
        delay = max(due - self._clock_us(), 0) * self._per_us
        if self._event is None:
            self._event = self.board.schedule(self._tick, delay)
        else:
            self._event.reschedule(delay=delay)

    def _tick(self) -> None:
        self._catch_up()
        self._plan()

    def _catch_up(self) -> None:
        """Set the flags of what has happened since this was last looked at."""
        before, now = self._previous, self._clock_us()
        if now <= before:
            return
        self._previous = now
        period = self._period_us()
        flags = 0
        if period and now // period != before // period:
            flags |= _B_PERIODIC
        if now // 1_000_000 != before // 1_000_000 and not self.memory[_B] & _B_SET:
            flags |= _B_UPDATE
            if any(self._is_alarm(s) for s in self._seconds(before, now)):
                flags |= _B_ALARM
        self.memory[_C] |= flags
        if self.memory[_C] & self.memory[_B] & 0x70:
            self.memory[_C] |= _C_IRQ
            self._line.set(True)

    @staticmethod
    def _seconds(before: int, now: int) -> range:
        last = now // 1_000_000
        return range(max(before // 1_000_000 + 1, last - 86400), last + 1)

    def _is_alarm(self, second: int) -> bool:
        day = second % 86400
        actual = (day % 60, day // 60 % 60, day // 3600)
        alarm = (self.memory[at] for at in _ALARM)
        decode = (self._decode, self._decode, self._decode_hour)
        # Two high bits set: any value (data sheet, 'Time, calendar, and alarm locations').
        return all(
            value >= 0xC0 or each(value) == is_
            for value, each, is_ in zip(alarm, decode, actual, strict=True)
        )

    # ---- registers ----

    @data.read
    def load(self) -> int:
        at = self.index & 0x7F
        if at in _CLOCK:
            if not self.memory[_B] & _B_SET:
                self._show()
        elif at == _A:
            to_update = 1_000_000 - self._clock_us() % 1_000_000
            updating = to_update <= _UPDATE_US and not self.memory[_B] & _B_SET
            return self.memory[_A] | (_UPDATING if updating else 0)
        elif at == _C:
            self._catch_up()
            value = self.memory[_C]
            self.memory[_C] = 0
            self._line.set(False)
            return value
        return self.memory[at]

    @data.write
    def store(self, value: int) -> None:
        at = self.index & 0x7F
        if at in (_C, _D):
            return
        self._catch_up()
        if at == _A:
            self.memory[_A] = value & ~_UPDATING
        elif at == _B:
            self._control(value)
        else:
            if at in _CLOCK and not self.memory[_B] & _B_SET:
                self._show()
            self.memory[at] = value
            if at in _CLOCK and not self.memory[_B] & _B_SET:
                self._set_time()
        self._plan()

    def _control(self, value: int) -> None:
        old = self.memory[_B]
        if value & _B_SET and not old & _B_SET:
            self._show()
            self.stopped = self._clock_us() or 1
        if not value & _B_SET and old & _B_SET:
            # In the format that they were written in.
            self.memory[_B] = value
            self._set_time()
            self.offset_us = self.stopped - self._system_us()
            self.stopped = 0
            self._previous = self._clock_us()
        self.memory[_B] = value & ~_B_UPDATE if value & _B_SET else value
        if self.memory[_C] & self.memory[_B] & 0x70:
            self.memory[_C] |= _C_IRQ
            self._line.set(True)

    def load_state(self, state: dict[str, object]) -> None:  # type: ignore[override]
        super().load_state(state)
        self._previous = self._clock_us()
        self._line.set(bool(self.memory[_C] & _C_IRQ))
        self._plan()
