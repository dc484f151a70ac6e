"""What a command will take of the machine: memory, disk and seconds; what does not fit is refused here.

They measure nothing but the speed of the machine.
"""
