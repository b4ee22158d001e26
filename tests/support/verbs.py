"""Verbs that docstrings of functions begin with. Add yours when it is one."""

from __future__ import annotations

_LIST = """
Accept Acquire Adapt Add Adjust Admit Allow Announce Answer Append Apply Arm Ask Average Await Become Begin
Block Book Bound Break Bring Build Cache Call Cancel Carry Change Check Classify Close Collect Combine Compare
Compile Compute Consume Convert Copy Count Create Declare Delete Describe Detect Do Document Download Draw
Drop Emit Empty Encode End Escape Estimate Execute Expand Explain Fill Find Finish Flush Fold Follow Forget
Format Forward Give Go Group Guard Hand Hash Have Hide Hold Implement Import Index Insert Issue Jump Keep
Learn Leave Let Limit List Load Look Loop Make Mark Mask Measure Migrate Model Name Normalise Note Offer Open
Order Pair Parse Pause Plan Point Prepare Prevent Print Probe Provide Put Query Queue Rank Read Record Reduce
Refuse Register Release Remember Remove Rename Render Replace Replay Report Request Require Reserve Resolve
Return Round Run Say Schedule Score See Select Send Separate Serve Set Share Shorten Show Simulate Sort Split
Start Stop Store Sum Take Tell Test Tie Time Translate Treat Try Turn Update Validate Wait Wake Write Yield
"""
VERBS = frozenset(_LIST.split())
