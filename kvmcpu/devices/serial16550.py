# SPDX-License-Identifier: MIT
"""The 16550 serial port, as the PC16550D data sheet (National Semiconductor, 1995) describes it.

What the guest sends goes to the board's console at once: the transmitter is never full, and a byte
takes no time. Where nobody wants to hear of it, this happens in C, as does reading the line status.
What the host sends waits here, however much it is, and goes to the receiver's FIFO as the guest
reads: nothing is lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvmcpu.devices.base import Cell, Device, Ports, Register, State

# Interrupt enable (data sheet, 8.7), and the causes in the order of their priority (8.6)
_IER_RECEIVED, _IER_THR_EMPTY, _IER_LINE, _IER_MODEM = 1, 2, 4, 8
_IIR_NONE, _IIR_MODEM, _IIR_THR_EMPTY, _IIR_RECEIVED, _IIR_LINE, _IIR_TIMEOUT = (
    0x01, 0x00, 0x02, 0x04, 0x06, 0x0C,
)  # fmt: skip
_IIR_FIFOS = 0xC0
_FCR_ENABLE, _FCR_CLEAR_RECEIVER = 1, 2
_LCR_DLAB = 0x80
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 1, 2, 4, 8, 0x10
_LSR_READY, _LSR_OVERRUN, _LSR_THR_EMPTY, _LSR_IDLE = 1, 2, 0x20, 0x40
_LSR_ERRORS = 0x1E
_MSR_DELTAS = 0x0F
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_CONNECTED = _MSR_CTS | _MSR_DSR | _MSR_DCD
_FIFO_SIZE = 16
_TRIGGER = (1, 4, 8, 14)


@dataclass(eq=False, kw_only=True)
class Serial16550(Device):
    """A 16550 at ``port``, with interrupt line ``irq``: COM1 by default."""

    port: int = 0x3F8
    irq: int = 4

    data_port = Ports("port", 1, output=True)
    ports = Ports("port", 4, start=1)
    status_port = Ports("port", 1, start=5, cells=True)
    modem_ports = Ports("port", 2, start=6)

    data = Register(data_port, 0, access="w")
    received = Register(data_port, 0, access="r")
    ier = Register(ports, 0, mask=0x0F, fields={"RX": 0, "THRE": 1, "LINE": 2, "MODEM": 3})
    iir = Register(ports, 1, access="r", reset=_IIR_NONE, fields={"NONE": 0, "CAUSE": (1, 3)})
    fcr = Register(ports, 1, access="w")
    lcr = Register(ports, 2, fields={"LENGTH": (0, 2), "DLAB": 7})
    mcr = Register(ports, 3, mask=0x1F,
                   fields={"DTR": 0, "RTS": 1, "OUT1": 2, "OUT2": 3, "LOOP": 4})  # fmt: skip
    lsr = Cell(status_port, 0, access="r", reset=_LSR_THR_EMPTY | _LSR_IDLE,
                   fields={"DR": 0, "OE": 1, "THRE": 5, "TEMT": 6})  # fmt: skip
    msr = Register(modem_ports, 0, access="r", reset=_CONNECTED,
                   fields={"CTS": 4, "DSR": 5, "RI": 6, "DCD": 7})  # fmt: skip
    scratch = Register(modem_ports, 1)
    divisor_low = Register(data_port, 0, page="divisor", reset=12)  # 9600 baud
    divisor_high = Register(ports, 0, page="divisor")

    control = State(int)  # the FIFO control register, which the guest cannot read
    fifo = State(bytearray)
    thr_interrupt = State(bool)  # the transmitter became empty and nobody has seen it
    backlog = State(bytearray)  # from the host, behind the FIFO

    def connect(self) -> None:
        self._sends_in_c = self._status_in_c = True
        self._line = self.board.irq(self.irq)
        self._put = self.board.output.write
        self._bytes = [bytes([i]) for i in range(256)]
        self._coming: deque[bytes] = deque()

    # ---- from the host ----

    def input(self, data: bytes) -> None:
        """Send bytes to the guest, from any thread."""
        self._coming.append(bytes(data))
        self.board.schedule(self._arrive, 0)

    @property
    def waiting(self) -> int:
        """Bytes that the guest has not read yet."""
        return len(self.fifo) + len(self.backlog) + sum(map(len, tuple(self._coming)))

    def _arrive(self) -> None:
        while self._coming:
            self.backlog += self._coming.popleft()
        self._fill()

    def _fill(self) -> None:
        """Move what waits to the FIFO, as far as there is room."""
        if self.backlog and not self.mcr & _MCR_LOOP:
            room = (_FIFO_SIZE if self.control & _FCR_ENABLE else 1) - len(self.fifo)
            if room > 0:
                self.fifo += self.backlog[:room]
                del self.backlog[:room]
        if self.fifo:
            self.lsr |= _LSR_READY
        self._update()

    # ---- interrupts ----

    def _update(self) -> None:
        """The most urgent cause of an interrupt, and the line by it."""
        enabled, cause = self.ier, _IIR_NONE
        if enabled & _IER_LINE and self.lsr & _LSR_ERRORS:
            cause = _IIR_LINE
        elif enabled & _IER_RECEIVED and self.fifo:
            full = len(self.fifo) >= _TRIGGER[self.control >> 6]
            fifos = self.control & _FCR_ENABLE
            # Below the trigger level nothing more comes at once: the time-out is over.
            cause = _IIR_RECEIVED if full or not fifos else _IIR_TIMEOUT
        elif enabled & _IER_THR_EMPTY and self.thr_interrupt:
            cause = _IIR_THR_EMPTY
        elif enabled & _IER_MODEM and self.msr & _MSR_DELTAS:
            cause = _IIR_MODEM
        self.iir = cause | (_IIR_FIFOS if self.control & _FCR_ENABLE else 0)
        # OUT2 connects the line to the bus (PC hardware); in loop-back it does not.
        connected = self.mcr & (_MCR_OUT2 | _MCR_LOOP) == _MCR_OUT2
        self._line.set(cause != _IIR_NONE and connected)

    # ---- what registers do ----

    @data.write
    def send(self, value: int) -> None:
        if self.mcr & _MCR_LOOP:
            self._receive(value)
        else:
            self._put(self._bytes[value])
        self.thr_interrupt = True
        self._update()

    def _receive(self, value: int) -> None:
        room = _FIFO_SIZE if self.control & _FCR_ENABLE else 1
        if len(self.fifo) < room:
            self.fifo.append(value)
        else:
            self.lsr |= _LSR_OVERRUN
            self._choose()  # reading it has an effect now
            if room == 1:
                self.fifo[0] = value
        self.lsr |= _LSR_READY
        self._update()

    @received.read
    def take(self) -> int:
        if not self.fifo:
            return self.received
        self.received = self.fifo.pop(0)
        if not self.fifo:
            self.lsr &= ~_LSR_READY
        self._fill()
        return self.received

    @ier.write
    def enable(self, value: int) -> None:
        # Enabling the transmitter's interrupt while it is empty raises it (8.6, table III).
        if value & _IER_THR_EMPTY:
            self.thr_interrupt = True
        self._choose()
        self._update()

    @iir.read
    def identify(self) -> int:
        value = self.iir
        if value & 0x0F == _IIR_THR_EMPTY:
            self.thr_interrupt = False
            self._update()
        return value

    @fcr.write
    def control_fifos(self, value: int) -> None:
        changed = (value ^ self.control) & _FCR_ENABLE
        self.control = value & 0xC9 if value & _FCR_ENABLE else 0
        if changed or value & _FCR_CLEAR_RECEIVER:
            # What the host sent is not lost by a driver that starts afterwards.
            self.backlog[:0] = self.fifo
            self.fifo.clear()
            self.lsr &= ~_LSR_READY
        self._fill()

    @lcr.write
    def control_line(self, _value: int) -> None:
        self._turn_page()

    def _turn_page(self) -> None:
        page = "divisor" if self.lcr & _LCR_DLAB else None
        self.select(Serial16550.data_port, page)
        self.select(Serial16550.ports, page)
        self._choose()

    def _choose(self) -> None:
        """What C can do by itself now."""
        sends = not (self.lcr & _LCR_DLAB or self.mcr & _MCR_LOOP or self.ier & _IER_THR_EMPTY)
        if sends != self._sends_in_c:
            self._sends_in_c = sends
            self.serve(Serial16550.data_port, in_c=sends)
        status = not self.lsr & _LSR_ERRORS
        if status != self._status_in_c:
            self._status_in_c = status
            self.serve(Serial16550.status_port, in_c=status)

    @mcr.write
    def control_modem(self, value: int) -> None:
        lines = _CONNECTED
        if value & _MCR_LOOP:  # the outputs lead back to the inputs (8.8)
            lines = (
                (_MSR_CTS if value & _MCR_RTS else 0)
                | (_MSR_DSR if value & _MCR_DTR else 0)
                | (_MSR_RI if value & _MCR_OUT1 else 0)
                | (_MSR_DCD if value & _MCR_OUT2 else 0)
            )
        changed = (lines ^ self.msr) & 0xF0
        deltas = changed >> 4 & 0x0B
        if changed & _MSR_RI and not lines & _MSR_RI:
            deltas |= 0x04  # only the end of a ring counts
        self.msr = lines | self.msr & _MSR_DELTAS | deltas
        self._choose()
        self._fill()

    @lsr.read
    def line_status(self) -> int:
        value = self.lsr
        if value & _LSR_ERRORS:
            self.lsr = value & ~_LSR_ERRORS
            self._choose()
            self._update()
        return value

    @msr.read
    def modem_status(self) -> int:
        value = self.msr
        if value & _MSR_DELTAS:
            self.msr = value & ~_MSR_DELTAS
            self._update()
        return value

    def load_state(self, state: dict[str, object]) -> None:  # type: ignore[override]
        super().load_state(state)
        self._turn_page()
        self._update()
