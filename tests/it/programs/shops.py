"""Calls again and again until a file is there: `shops.py URL FILE CALLERS`. Each call resolves the name and opens a connection
of its own, as `curl` does. Prints how many calls were served, how many failed, and why the first one did."""

import os
import sys
import threading
import time
import urllib.request

url, file, callers = sys.argv[1], sys.argv[2], int(sys.argv[3])
served, failed = [0] * callers, []


def shop(number):
    while not os.path.exists(file):
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                answer.read()
            served[number] += 1
        except OSError as error:
            failed.append(f"{error} {error.read() if hasattr(error, 'read') else ''}")
        time.sleep(0.005)


threads = [threading.Thread(target=shop, args=(number,)) for number in range(callers)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("served", sum(served), "failed", len(failed), failed[:1], flush=True)
