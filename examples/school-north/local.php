<?php
// Settings that the wiki's own admin page cannot change.
$conf['title'] = 'Mill Lane School, North Campus';
$conf['lang'] = 'de';
$conf['license'] = 'cc-by-sa';
$conf['disableactions'] = 'register';
