. /work/env.sh; cd /work/exp
python w3.py "FMD FISH" 800 pulse=4 pulse=1.5 pulse=1 > w3.log 2>&1
python w3.py "FMD MICE" 800 pulse=4 pulse=1.5 >> w3.log 2>&1
python w3.py W2S 1000 pulse=1.5 >> w3.log 2>&1
