Traceback (most recent call last):
  File "/tmp/textside/server.py", line 19, in <module>
    if args[0]=="pytest":
       ~~~~^^^
IndexError: list index out of range
rc 1
