# SPDX-License-Identifier: MIT
"""A PC composed in Python: its kernel's shell is asked some questions.

make -C examples && python examples/pc.py
"""

from pathlib import Path

from kvmcpu import System, devices

kernel = Path(__file__).with_name("kernel") / "kernel.elf"
clock, serial = devices.Cmos(), devices.Serial16550()

with System(memory="32MiB", devices=[serial, clock, devices.I8042(), devices.DebugExit()]) as pc:
    pc.load(kernel, ["first", "second"])
    pc.run(until="> ", timeout=10)
    pc.console.send("args\necho Hello\n")
    pc.run(until="Hello", timeout=10)
    pc.console.send("exit 0\n")
    result = pc.run(timeout=10)
    print(pc.console.text)
    print(pc, result, serial.describe()[0], sep="\n")
raise SystemExit(result.exit_code)
