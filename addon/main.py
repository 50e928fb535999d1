"""What `mitmdump -s addon/main.py` loads."""

from pointsman.proxy.addon import Pointsman

addons = [Pointsman()]
