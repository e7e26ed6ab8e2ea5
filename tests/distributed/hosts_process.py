"""One of two processes that train nothing; number 1 `fails`, is `late`, or all goes `well`."""

import socket
import sys
import time

from jepa.errors import UserError
from jepa.parallel import hosts


def main(mode):
    hosts.barrier("begin")
    assert hosts.gather("say who", f"I am {hosts.index()}") == ["I am 0", "I am 1"]
    assert hosts.agree("begin well", "") == ""
    here = f"process 1 ({socket.gethostname()}) of 2: 1 cannot"
    assert hosts.agree("begin badly", "1 cannot" if hosts.index() else "") == here
    if hosts.index() == 1 and mode == "fails":
        raise UserError("a mistake that only process 1 sees.")
    if hosts.index() == 1 and mode == "late":
        time.sleep(600)
    hosts.at("work")
    time.sleep(600 if mode == "late" else 0)  # as devices wait for each other
    hosts.barrier("the rest")


if __name__ == "__main__":
    hosts.join(timeout=10 if sys.argv[1] == "late" else 60)
    with hosts.together():
        main(sys.argv[1])
