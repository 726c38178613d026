"""`tags doctor`: whether this installation can do its work, checked on the real parts, with the fix for what cannot."""
